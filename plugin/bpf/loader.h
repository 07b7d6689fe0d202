// Puts the fence into the kernel and takes it out again. Apart from kernel_fence.h because the program itself is linked
// with this, and with nothing else.
#pragma once

#include <string>

#include "common/error.h"
#include "plugin/bpf/kernel_fence.h"

namespace usblease::fence {

// Loads and pins it. One of this version that is loaded is kept with all that it knows; if its program is another
// build, this one takes its place: both look at each call for a moment, so there is no gap. kUnavailable: the kernel
// cannot; kRefused: another version is loaded.
Result<KernelFence> load_fence(const std::string& root = kPinRoot);

// Takes it out of the kernel, whatever version it is: nothing is refused any more. No fence there: no-op.
Result<void> unload_fence(const std::string& root = kPinRoot);

}  // namespace usblease::fence
