// One side of a usbredir stream for tests: says hello, records every packet that it gets, and sends what it is told to.
#pragma once

#include <usbredirparser.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/fd.h"

namespace usblease::test {

struct Packet {
  std::string type;
  std::uint64_t id = 0;
  std::string header;  // the bytes of the packet's type-specific header
  std::string data;
  bool operator==(const Packet&) const = default;
};

std::string describe(const Packet& packet);

enum class Role : std::uint8_t { kGuest, kEndpoint };

inline constexpr std::uint32_t kAllCaps = 0xff;

class Peer {
 public:
  // `fd` is made non-blocking. The hello is queued, not sent.
  Peer(UniqueFd fd, Role role, std::uint32_t caps = kAllCaps);
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  usbredirparser* parser() { return parser_.get(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

  // Each moves what it can without blocking, and says whether anything moved.
  bool flush();
  bool receive();

  // Past the parser. All of it must fit.
  void send_raw(std::string_view bytes);

  [[nodiscard]] bool end_of_stream() const { return end_of_stream_; }
  [[nodiscard]] bool hello_seen() const { return hello_seen_; }
  [[nodiscard]] const std::string& peer_version() const { return peer_version_; }
  [[nodiscard]] std::uint32_t peer_caps() const;
  [[nodiscard]] std::size_t bytes_received() const { return bytes_received_; }

  std::vector<Packet> received;  // hellos are not in it

 private:
  struct ParserFree {
    void operator()(usbredirparser* parser) const { usbredirparser_destroy(parser); }
  };
  void set_callbacks();

  UniqueFd fd_;
  std::unique_ptr<usbredirparser, ParserFree> parser_;
  bool end_of_stream_ = false;
  bool hello_seen_ = false;
  std::string peer_version_;
  std::size_t bytes_received_ = 0;
};

}  // namespace usblease::test
