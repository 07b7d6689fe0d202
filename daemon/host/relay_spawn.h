// Starting a relay: the one place that forks.
#pragma once

#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::host {

struct RelayDescriptors {
  UniqueFd guest;
  UniqueFd endpoint;
  UniqueFd listener;
};

// Runs `arguments` (the first is the program's path) in a session of its own, as nobody's child, with exactly the
// descriptors of daemon/relay/invocation.h. Blocks for two fork(2)s, not for the program. What goes wrong after the
// fork is written to stderr and closes the descriptors.
Result<void> spawn_relay_process(const std::vector<std::string>& arguments, RelayDescriptors descriptors);

}  // namespace usblease::host
