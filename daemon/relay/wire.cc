#include "daemon/relay/wire.h"

#include <usbredirparser.h>

#include <algorithm>
#include <cstring>

#include "common/text.h"

namespace usblease::relay {
namespace {

constexpr std::size_t kHelloHeaderBytes = 12;  // type, length, id of 32 bits
constexpr std::size_t kVersionBytes = sizeof(usb_redir_hello_header);
constexpr std::size_t kHelloCapsMaxBytes = 64;  // 512 capabilities; usbredir 0.7 knows 8

// Native byte order, as libusbredirparser: the protocol is little-endian in words only.
std::uint32_t word_at(std::span<const std::uint8_t> bytes, std::size_t at) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

constexpr std::uint32_t bit(int cap) { return 1U << static_cast<unsigned>(cap); }

}  // namespace

std::uint32_t supported_caps() {
  return bit(usb_redir_cap_bulk_streams) | bit(usb_redir_cap_connect_device_version) | bit(usb_redir_cap_filter) |
         bit(usb_redir_cap_device_disconnect_ack) | bit(usb_redir_cap_ep_info_max_packet_size) |
         bit(usb_redir_cap_64bits_ids) | bit(usb_redir_cap_32bits_bulk_length) | bit(usb_redir_cap_bulk_receiving);
}

std::uint32_t normalize_caps(std::uint32_t caps) {
  if ((caps & bit(usb_redir_cap_ep_info_max_packet_size)) == 0) caps &= ~bit(usb_redir_cap_bulk_streams);
  return caps;
}

HelloState parse_hello(std::span<const std::uint8_t> bytes, PeerHello* hello, std::string* problem) {
  // Judged as early as possible: garbage must not make us wait for more of it.
  if (bytes.size() < 4) return HelloState::kNeedMore;
  if (const std::uint32_t type = word_at(bytes, 0); type != usb_redir_hello) {
    *problem = "the first packet is of type " + std::to_string(type) + ", not a usbredir hello";
    return HelloState::kBad;
  }
  if (bytes.size() < 8) return HelloState::kNeedMore;
  const std::uint32_t length = word_at(bytes, 4);
  if (length < kVersionBytes || length > kVersionBytes + kHelloCapsMaxBytes || length % 4 != 0) {
    *problem = "a hello of " + std::to_string(length) + " bytes is no usbredir hello";
    return HelloState::kBad;
  }
  if (bytes.size() < kHelloHeaderBytes + length) return HelloState::kNeedMore;
  const auto* text = reinterpret_cast<const char*>(bytes.data() + kHelloHeaderBytes);
  hello->version = escape_text(std::string_view(text, strnlen(text, kVersionBytes)));
  const bool has_caps = length > kVersionBytes;
  hello->caps = normalize_caps(has_caps ? word_at(bytes, kHelloHeaderBytes + kVersionBytes) : 0);
  return HelloState::kComplete;
}

bool PacketMeter::push(std::span<const std::uint8_t> bytes) {
  while (!bytes.empty()) {
    if (body_left_ > 0) {
      const std::size_t step = std::min(body_left_, bytes.size());
      body_left_ -= step;
      bytes = bytes.subspan(step);
      continue;
    }
    const std::size_t step = std::min(header_bytes_ - header_read_, bytes.size());
    std::memcpy(header_.data() + header_read_, bytes.data(), step);
    header_read_ += step;
    bytes = bytes.subspan(step);
    if (header_read_ < header_bytes_) return true;
    announced_ = word_at(header_, 4);
    if (announced_ > packet_max_) return false;
    body_left_ = announced_;
    header_read_ = 0;
    header_bytes_ = header_bytes_after_hello_;
  }
  return true;
}

}  // namespace usblease::relay
