// What can be known of the fence in the kernel by looking, without BPF: whether this kernel can have it, and whether it
// is there. For whoever only wants to know: the daemon, `host info`.
#pragma once

#include <string>

#include "common/error.h"

namespace usblease::fence {

inline constexpr const char* kPinRoot = "/sys/fs/bpf/usblease";

// ROOT/vN: where this version's programs and maps are pinned.
std::string version_directory(const std::string& root);

// Whether this kernel can have the fence; kUnavailable says why not, and what to do. `sysfs` is for tests.
Result<void> check_support(const std::string& sysfs = "/sys");

// Whether it is loaded, in this version; kUnavailable says what to do.
Result<void> check_loaded(const std::string& root = kPinRoot);

}  // namespace usblease::fence
