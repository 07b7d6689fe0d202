// The fence's maps, as they are pinned.
#pragma once

#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::fence {

// A pinned map of this version under ROOT, by its name in fence.bpf.c; kNotFound: the fence is not loaded.
Result<UniqueFd> open_map(const std::string& root, const char* name);

}  // namespace usblease::fence
