// The fence in the kernel (plugin/bpf/kernel_fence.h) as a home uses it: by the place of a device, opened for each
// call, since it may be loaded, unloaded or replaced at any time. A daemon that was built without it says kUnavailable.
//
// May block for as long as another program holds the fence's lock.
#pragma once

#include <cstdint>
#include <vector>

#include "common/error.h"
#include "daemon/host/usb_gate.h"

namespace usblease::host::usb_kernel_fence {

// As UsbGate says.
Result<void> arm(const UsbPlace& place, const UsbLease& lease, const UsbHolder& holder);
Result<void> extend(const UsbPlace& place, const UsbLease& lease);
Result<void> disarm(const UsbPlace& place, std::uint64_t token);
Result<UsbLease> look(const UsbPlace& place);
Result<std::vector<std::uint64_t>> count_refused(const std::vector<UsbPlace>& places);

}  // namespace usblease::host::usb_kernel_fence
