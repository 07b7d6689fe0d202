// Bounds of every command that reaches the core.
#pragma once

#include "command.pb.h"
#include "common/error.h"

namespace usblease::lease {

// kBadInput names the field and what is allowed.
Result<void> validate(const command::Command& command);

}  // namespace usblease::lease
