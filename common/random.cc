// Apart from text.cc, so that the simulator can bring randomness of its own.
#include "common/random.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/text.h"

namespace usblease {
namespace {

void fill(void* bytes, std::size_t size) {
  std::size_t have = 0;
  while (have < size) {
    const ssize_t got = getrandom(static_cast<char*>(bytes) + have, size - have, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) std::abort();  // no kernel of the last ten years does this; an id must not be guessable
    have += static_cast<std::size_t>(got);
  }
}

}  // namespace

std::uint64_t random_bits() {
  std::uint64_t bits = 0;
  fill(&bits, sizeof bits);
  return bits;
}

std::string random_hex(std::size_t bytes) {
  std::vector<unsigned char> raw(bytes);
  fill(raw.data(), bytes);
  std::string out;
  for (const unsigned char byte : raw) {
    std::array<char, 3> hex{};
    std::snprintf(hex.data(), hex.size(), "%02x", static_cast<unsigned>(byte));
    out += hex.data();
  }
  return out;
}

}  // namespace usblease
