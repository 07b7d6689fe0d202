// The relay gives up everything but the descriptors it was started with. It parses what a guest and a device send, so
// whoever breaks it must find nothing in it: no privileges, no files, no sockets but its own, no other process.
#pragma once

#include <sys/types.h>

#include "common/error.h"

namespace usblease::relay {

struct SandboxOptions {
  uid_t uid = 0;  // another than the present one needs root
  gid_t gid = 0;
};

// First of all: whatever else the starter left open.
Result<void> close_descriptors_above(int last_fd);

// Enters it for good. In order: priority, capabilities, uid and gid, limits, no_new_privs, not dumpable, seccomp. An
// error: the relay must not go on. What is only desirable (memory locked, a better priority) is tried, and a failure is
// logged.
//
// In a build with AddressSanitizer there is no seccomp filter and no limit of the address space: the sanitizer's own
// runtime needs more than both allow. The log says so.
Result<void> enter_sandbox(const SandboxOptions& options);

}  // namespace usblease::relay
