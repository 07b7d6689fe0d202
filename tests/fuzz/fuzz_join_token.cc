// Any text as a join token: it is refused, or it is exactly what encode_join_token writes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "daemon/cluster/join_token.h"

using namespace usblease;
using namespace usblease::cluster;

namespace {

void check(std::string_view text) {
  const auto token = decode_join_token(text);
  if (!token) {
    if (token.error().message.empty()) std::abort();
    return;
  }
  const auto encoded = encode_join_token(*token);
  if (!encoded) std::abort();
  const auto again = decode_join_token(*encoded);
  if (!again || !(*again == *token)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  // The same as the inside of a token whose checksum is right: nobody finds one by chance.
  check(wrap_join_token_bytes(bytes));
  return 0;
}
