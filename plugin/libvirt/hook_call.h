// What the hook says to usbleased, and what it hears.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "plugin/libvirt/declarations.h"

namespace usblease::hook {

struct Call {
  std::string operation;
  std::string guest_name;
  std::string guest_uuid;
  int domain_id = -1;
  std::vector<Declared> devices;
  std::uint64_t invoked_boottime_ns = 0;
};

// Connects, says Hello, makes the call and waits for the verdict, all until deadline_ns (CLOCK_BOOTTIME). Success: the
// daemon said OK. The code of an error is the daemon's; kUnavailable and kTimedOut also mean that it did not answer.
Result<void> call_daemon(const std::string& socket_path, const Call& call, std::uint64_t deadline_ns);

}  // namespace usblease::hook
