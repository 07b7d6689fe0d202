// What must hold of the records together. load() refuses a store in which it does not, so the core may rely on it.
#pragma once

#include "common/error.h"
#include "daemon/lease/state.h"

namespace usblease::lease {

// kRefused names the record and what is wrong with it.
Result<void> check_state(const State& state);

// Bounds of one device's record, its lease included.
Result<void> check_device(const record::Device& device);

}  // namespace usblease::lease
