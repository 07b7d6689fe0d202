// Any bytes as a lease page. What must hold: only a slot whose check is right is believed, and its token is not older
// than the other good slot's.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "plugin/lease-page/lease_page.h"

namespace {

void require(bool holds) {
  if (!holds) abort();
}

// Random bytes hardly ever carry a right check: with the first byte's help the slots get one.
void seal_some(std::uint8_t choice, std::array<UsbLeaseSlot, 2>& slots) {
  for (unsigned index = 0; index < 2; ++index) {
    UsbLeaseSlot& slot = slots[index];
    if (((choice >> index) & 1U) == 0) continue;
    slot.magic = USB_LEASE_MAGIC;
    slot.version = USB_LEASE_VERSION;
    if (((choice >> (index + 2)) & 1U) != 0) slot.generation = (slot.generation % 8) * 2 + index;
    if (((choice >> 4) & 1U) != 0) slot.epoch = 1;
    slot.state %= 5;
    slot.check = usb_lease_check(&slot);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::array<UsbLeaseSlot, 2> slots{};
  const std::size_t given = size - 1 < sizeof slots ? size - 1 : sizeof slots;
  std::memcpy(slots.data(), data + 1, given);
  seal_some(data[0], slots);
  const std::size_t shown = (data[0] & 0x80U) != 0 ? given : sizeof slots;

  UsbLeaseSlot read{};
  const bool good = usb_lease_decode(slots.data(), shown, &read);
  if (good) {
    const unsigned index = read.generation % 2;
    require(std::memcmp(&read, &slots[index], sizeof read) == 0);
    require(usb_lease_slot_ok(&read, index));
    if (usb_lease_slot_ok(&slots[1 - index], 1 - index)) require(slots[1 - index].token <= read.token);
  }
  return 0;
}
