// Which process may use a USB device.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace usblease::host {

// A process of this boot.
struct UsbHolder {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;  // as in /proc/PID/stat

  bool operator==(const UsbHolder&) const = default;
};

UsbHolder this_process();

}  // namespace usblease::host
