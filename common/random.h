// Numbers that nobody can guess, and that two hosts do not share.
#pragma once

#include <cstdint>

namespace usblease {

// 64 bits from getrandom(2).
std::uint64_t random_bits();

}  // namespace usblease
