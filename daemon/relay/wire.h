// The little of usbredir's framing that must be known before and beside libusbredirparser. Pure: bytes in, facts out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/error.h"

namespace usblease::relay {

// A transfer of usbfs is at most 16 MiB; libusbredirparser itself would take 128 MiB from either side.
inline constexpr std::size_t kPacketMax = 16UL * 1024 * 1024 + 4096;

// Every capability that the relay can forward: all eight of usbredir 0.7.
std::uint32_t supported_caps();

// A capability that depends on another is worth nothing without it: libusbredirparser would call it an error.
std::uint32_t normalize_caps(std::uint32_t caps);

struct PeerHello {
  std::string version;  // untrusted, made printable
  std::uint32_t caps = 0;
};
enum class HelloState : std::uint8_t { kNeedMore, kComplete, kBad };
// Looks at what has arrived so far; consumes nothing. kBad: `problem` says why it is no hello.
HelloState parse_hello(std::span<const std::uint8_t> bytes, PeerHello* hello, std::string* problem);

// Follows the packet boundaries of one direction, so that an oversized length is known before memory is taken for it.
class PacketMeter {
 public:
  explicit PacketMeter(std::size_t packet_max) : packet_max_(packet_max) {}

  // After the hello: ids of 64 bits when both sides have that capability.
  void use_wide_ids(bool wide) { header_bytes_after_hello_ = wide ? 16 : 12; }

  // The next bytes of the stream. False: the packet that just began announces `announced()` bytes, over the bound.
  bool push(std::span<const std::uint8_t> bytes);
  [[nodiscard]] std::uint32_t announced() const { return announced_; }

 private:
  std::size_t packet_max_;
  std::size_t header_bytes_ = 12;  // of the present packet; the hello's ids always have 32 bits
  std::size_t header_bytes_after_hello_ = 12;
  std::array<std::uint8_t, 16> header_{};
  std::size_t header_read_ = 0;
  std::size_t body_left_ = 0;
  std::uint32_t announced_ = 0;
};

}  // namespace usblease::relay
