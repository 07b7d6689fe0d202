#include "plugin/bpf/device_number.h"

#include "plugin/bpf/fence_abi.h"

namespace usblease::fence {
namespace {

constexpr std::uint32_t kBusMax = 511;  // 18 bits of minor numbers would allow more; no machine has them
constexpr std::uint32_t kDevicesPerBus = 128;

}  // namespace

Result<DeviceNumber> device_number(std::uint32_t bus, std::uint32_t device) {
  if (bus < 1 || bus > kBusMax || device < 1 || device >= kDevicesPerBus) {
    return fail(ErrorCode::kBadInput, "a USB device has a bus from 1 to 511 and a number from 1 to 127 there");
  }
  return (USBLEASE_USB_DEVICE_MAJOR << 20U) | ((bus - 1) * kDevicesPerBus + device - 1);
}

std::string to_text(DeviceNumber device) {
  return std::to_string(device >> 20U) + ":" + std::to_string(device & 0xFFFFFU);
}

}  // namespace usblease::fence
