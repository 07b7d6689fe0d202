// Faults that the simulator plants on purpose, one at a time, to see that it finds them (tests/sim, `--mutants`).
// Only the simulator compiles the product with USBLEASE_MUTANTS; anywhere else MUTANT(…) is the constant false, and
// what stands behind it is not in the program.
#pragma once

#ifdef USBLEASE_MUTANTS
namespace usblease {
bool mutant_is_planted(const char* name);
}  // namespace usblease
#define MUTANT(name) ::usblease::mutant_is_planted(#name)
#else
#define MUTANT(name) false
#endif
