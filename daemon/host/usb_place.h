// Where a device is on this host's own bus, so that it can be told from the next one that is plugged in there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/usb_sysfs.h"

namespace usblease::host {

struct UsbPlace {
  std::string port;  // as sysfs names what is plugged in there, "1-2.4"
  std::uint32_t bus = 0;
  std::uint32_t device = 0;  // its number on the bus
  std::uint64_t inode = 0;   // of usb::UsbDevice

  bool operator==(const UsbPlace&) const = default;
};

UsbPlace place_of(const usb::UsbDevice& device);

// For the home file: "1-2.4 1 7 20513".
std::string to_text(const UsbPlace& place);
// nullopt: it is none.
std::optional<UsbPlace> parse_place(const std::string& text);

}  // namespace usblease::host
