#include "common/frame.h"

#include <cstdlib>

namespace usblease {
namespace {

constexpr std::size_t kKeptCapacityBytes = 65'536;

}  // namespace

std::string encode_frame(std::string_view payload) {
  if (payload.size() > kFramePayloadMax) std::abort();
  const auto length = static_cast<std::uint32_t>(payload.size());
  std::string out;
  out.reserve(kFrameHeaderBytes + payload.size());
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>((length >> shift) & 0xFFU);
  out.append(payload);
  return out;
}

Result<std::optional<std::string>> FrameReader::next() {
  const std::string_view rest = std::string_view(buffer_).substr(consumed_);
  if (rest.size() < kFrameHeaderBytes) return std::nullopt;
  std::uint32_t length = 0;
  for (std::size_t i = 0; i < kFrameHeaderBytes; ++i) length = length << 8 | static_cast<unsigned char>(rest[i]);
  if (length > payload_max_) {
    return fail(ErrorCode::kBadInput, "a frame of " + std::to_string(length) + " bytes was announced; at most " +
                                          std::to_string(payload_max_) + " are allowed");
  }
  if (rest.size() < kFrameHeaderBytes + length) return std::nullopt;
  std::string payload(rest.substr(kFrameHeaderBytes, length));
  consumed_ += kFrameHeaderBytes + length;
  if (consumed_ == buffer_.size()) {
    // A reader that is idle again keeps no more memory than an ordinary read needs.
    if (buffer_.capacity() > kKeptCapacityBytes) {
      buffer_ = std::string();
    } else {
      buffer_.clear();
    }
    consumed_ = 0;
  } else if (consumed_ > payload_max_) {
    buffer_.erase(0, consumed_);
    consumed_ = 0;
  }
  return payload;
}

}  // namespace usblease
