// Framing of the request protocol (docs/protocol.md): 4 bytes big-endian length, then that many bytes
// of protobuf. Pure: bytes in, frames out.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/error.h"

namespace usblease {

inline constexpr std::uint32_t kApiVersion = 1;
inline constexpr std::size_t kFrameHeaderBytes = 4;
inline constexpr std::size_t kFramePayloadMax = std::size_t{1024} * 1024;

// header + payload. payload.size() <= kFramePayloadMax, else the program is wrong and aborts.
std::string encode_frame(std::string_view payload);

// Collects bytes of one stream and cuts them into frames. Holds at most one frame and what followed it in the same
// read.
class FrameReader {
 public:
  explicit FrameReader(std::size_t payload_max = kFramePayloadMax) : payload_max_(payload_max) {}

  void push(std::span<const char> bytes) { buffer_.append(bytes.data(), bytes.size()); }

  // The next whole payload; nullopt: more bytes are needed; kBadInput: the length is over the bound, the stream
  // cannot be followed any more and must be closed.
  Result<std::optional<std::string>> next();

  // Bytes that are held and not yet returned.
  [[nodiscard]] std::size_t pending() const { return buffer_.size() - consumed_; }

 private:
  std::size_t payload_max_;
  std::string buffer_;
  std::size_t consumed_ = 0;
};

}  // namespace usblease
