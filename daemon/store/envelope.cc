#include "daemon/store/envelope.h"

#include <zlib.h>

#include <cstdint>

#include "common/text.h"
#include "daemon/store/bytes.h"
#include "daemon/store/store.h"

namespace usblease::store {
namespace {

constexpr std::string_view kMagic = "UL";
constexpr unsigned char kVersion = 1;
constexpr std::size_t kHeaderBytes = 2 + 1 + 4;

std::uint32_t checksum(std::string_view key, std::string_view payload) {
  const auto add = [](uLong crc, std::string_view bytes) {
    return crc32_z(crc, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  };
  // The NUL keeps a key's end and a payload's beginning apart: no key has one (store.h).
  uLong crc = add(0, key);
  crc = add(crc, std::string_view("\0", 1));
  // zlib begins anew when it is given a null pointer, which an empty view may be.
  if (!payload.empty()) crc = add(crc, payload);
  return static_cast<std::uint32_t>(crc);
}

tl::unexpected<Error> bad(std::string_view key, const std::string& what) {
  return fail(ErrorCode::kRefused, "record \"" + escape_text(key.substr(0, kKeyMax)) + "\" " + what);
}

}  // namespace

std::string seal(std::string_view key, std::string_view payload) {
  std::string out;
  out.reserve(kHeaderBytes + payload.size());
  out += kMagic;
  out += static_cast<char>(kVersion);
  put_be(out, checksum(key, payload));
  out += payload;
  return out;
}

Result<std::string> unseal(std::string_view key, std::string_view sealed) {
  if (sealed.size() < kHeaderBytes) {
    return bad(key, "is damaged: it has " + std::to_string(sealed.size()) + " bytes, less than its envelope");
  }
  if (sealed.size() > kHeaderBytes + kValueMax) {
    return bad(key, "is damaged: it has " + std::to_string(sealed.size()) + " bytes, more than a record can have");
  }
  if (sealed.substr(0, kMagic.size()) != kMagic) return bad(key, "is damaged: it does not begin as a record does");
  const std::string_view payload = sealed.substr(kHeaderBytes);
  const bool intact = get_be<std::uint32_t>(sealed, 3) == checksum(key, payload);
  const auto version = static_cast<unsigned char>(sealed[2]);
  if (version > kVersion) {
    return bad(key, "has envelope version " + std::to_string(version) + ", newer than this program's " +
                        std::to_string(kVersion) + ": install the version of usblease that wrote it");
  }
  if (version != kVersion) return bad(key, "is damaged: there is no envelope version " + std::to_string(version));
  if (!intact) return bad(key, "is damaged: its checksum does not match (a flipped bit, or another key's record)");
  return std::string(payload);
}

}  // namespace usblease::store
