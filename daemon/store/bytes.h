// Big-endian numbers in byte strings.
#pragma once

#include <string>
#include <string_view>

namespace usblease::store {

template <typename Unsigned>
void put_be(std::string& out, Unsigned value) {
  for (std::size_t byte = sizeof(Unsigned); byte-- > 0;) out += static_cast<char>((value >> (8 * byte)) & 0xff);
}

// The caller has checked that `at` + the number's size lies within `in`.
template <typename Unsigned>
Unsigned get_be(std::string_view in, std::size_t at) {
  Unsigned value = 0;
  for (std::size_t byte = 0; byte < sizeof(Unsigned); ++byte) {
    value = static_cast<Unsigned>((value << 8) | static_cast<unsigned char>(in[at + byte]));
  }
  return value;
}

}  // namespace usblease::store
