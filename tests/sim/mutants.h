// The faults that common/mutant.h can plant, and what finds them.
#pragma once

#include <cstdint>
#include <string>

#include "tests/sim/schedule.h"

namespace usblease::sim {

// Empty: none. False: there is no such one.
bool plant(const std::string& name);

// A name a line, and the seed that is known to find it; 0: none is.
void print_mutant_names();

// Plants each in turn (`only` not empty: that one) and runs seeds until one is violated, at most `seeds_max`. Prints a
// table; 1 when one escapes.
int run_mutants(std::uint64_t seeds_max, const std::string& only);

// The least part of a failing schedule that still fails. One that holds is given back as it is.
Schedule shrink(const Schedule& schedule);

}  // namespace usblease::sim
