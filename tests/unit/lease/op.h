// Arbitrary steps for the property tests of a model: which one, and two bytes that it makes of what it needs. On a
// failure rapidcheck prints the shortest sequence that it found.
#pragma once

#include <rapidcheck.h>

#include <cstdint>
#include <ostream>
#include <vector>

namespace usblease::lease::test {

struct Op {
  std::uint8_t kind = 0;
  std::uint8_t a = 0;
  std::uint8_t b = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Op& op) {
  return out << "{" << int{op.kind} << "," << int{op.a} << "," << int{op.b} << "}";
}

// Sequences that grow with rapidcheck's size, from about `least` steps on.
inline rc::Gen<std::vector<Op>> any_ops(int least, int per_size) {
  return rc::gen::withSize([least, per_size](int size) {
    const auto byte = rc::gen::resize(100, rc::gen::arbitrary<std::uint8_t>());
    return rc::gen::resize(least + per_size * size,
                           rc::gen::container<std::vector<Op>>(rc::gen::construct<Op>(byte, byte, byte)));
  });
}

}  // namespace usblease::lease::test
