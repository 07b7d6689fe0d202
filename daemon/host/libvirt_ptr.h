// RAII for libvirt's handles, and its errors as ours.
#pragma once

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "common/error.h"

namespace usblease::host {

struct DomainFree {
  void operator()(virDomainPtr domain) const { virDomainFree(domain); }
};
using DomainPtr = std::unique_ptr<virDomain, DomainFree>;

struct MallocFree {
  // libvirt allocates it with malloc(3).
  void operator()(void* memory) const { std::free(memory); }  // NOLINT(cppcoreguidelines-owning-memory)
};
using MallocString = std::unique_ptr<char, MallocFree>;

// This thread's last libvirt error. kNotFound: no such guest; kUnavailable: no connection (a connection that breaks
// under a call gives kInternal). `what`: what was tried, to what.
Error libvirt_error(const std::string& what);

// Code of this thread's last libvirt error (virErrorNumber).
int libvirt_error_code();

}  // namespace usblease::host
