// The number of a usbfs node, by which the fence knows a device.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"

namespace usblease::fence {

// As the kernel holds it: major << 20 | minor.
using DeviceNumber = std::uint32_t;
// The number of "/dev/bus/usb/BUS/DEVICE" by its bus and device, whether or not it is plugged in. kBadInput.
Result<DeviceNumber> device_number(std::uint32_t bus, std::uint32_t device);
// "189:5".
std::string to_text(DeviceNumber device);

}  // namespace usblease::fence
