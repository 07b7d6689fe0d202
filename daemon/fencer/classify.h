// Default deny: every USB device that is plugged in is either managed, and refused to everybody without a lease, or
// free. Which one it is say the rules of the configuration. udev runs this for each device that comes or goes, before
// anybody else is told of it, so it needs no daemon.
#pragma once

#include <string>

#include "common/config.h"
#include "common/error.h"
#include "common/usb_sysfs.h"
#include "daemon/fencer/binding.h"
#include "plugin/bpf/kernel_fence.h"

namespace usblease::fencer {

// Brings the fence's table to what is plugged in: manages what the rules name, and unbinds it where it has no lease;
// frees the rest, and gives the host back what no rule names any more; forgets what is gone. What nobody has classified
// is refused from then on. A device with a live lease stays managed, even if no rule names it any more. Safe to be run
// by several at once.
Result<void> classify(fence::KernelFence* fence, const Config& config, const usb::Sysfs& sysfs, const Binding& binding);

// The same with the configuration at its usual place, and with the fence loaded where it is not. No device with usb= in
// it: no-op.
Result<void> classify_host();

}  // namespace usblease::fencer
