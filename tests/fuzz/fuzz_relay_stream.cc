// Bytes from either side into the relay's stream. Input: the first byte chooses the capabilities and whether good
// hellos come first; then chunks of (control byte, bytes): bit 7 says which side sends, the rest is the length.
//
// What must hold, besides what the sanitizers watch: the stream is never fenced before the endpoint's end of stream,
// the queues stay within their bound, and nothing is written once the stream has ended.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "daemon/relay/stream.h"

namespace {

using usblease::UniqueFd;
using usblease::relay::Side;
using usblease::relay::Stream;
using usblease::relay::StreamOptions;

constexpr std::size_t kQueueMax = 64UL * 1024;
constexpr std::size_t kPacketMax = 256UL * 1024;

struct Ends {
  UniqueFd near;
  UniqueFd far;
};

Ends make_ends() {
  std::array<int, 2> fds{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()) != 0) abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

void say_hello(int fd, std::uint32_t caps) {
  std::array<std::uint32_t, 3 + 16 + 1> hello{};
  hello[1] = 68;
  hello[19] = caps;
  if (send(fd, hello.data(), sizeof hello, MSG_NOSIGNAL) != sizeof hello) abort();
}

std::size_t discard(int fd) {
  std::array<char, 16384> buffer{};
  std::size_t total = 0;
  for (ssize_t got = 0; (got = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT)) > 0;) {
    total += static_cast<std::size_t>(got);
  }
  return total;
}

void turn(Stream* stream) {
  for (int round = 0; round < 4; ++round) {
    std::array<pollfd, 2> ready{{{stream->fd(Side::kGuest), stream->poll_events(Side::kGuest), 0},
                                 {stream->fd(Side::kEndpoint), stream->poll_events(Side::kEndpoint), 0}}};
    if (poll(ready.data(), ready.size(), 0) <= 0) return;
    stream->on_ready(Side::kGuest, ready[0].revents);
    stream->on_ready(Side::kEndpoint, ready[1].revents);
  }
}

void check(const Stream& stream, bool endpoint_closed) {
  if (stream.fenced_at_ns() && (!stream.ended() || !endpoint_closed)) abort();
  for (const Side side : {Side::kGuest, Side::kEndpoint}) {
    if (stream.queued(side) > kQueueMax + kPacketMax + 64) abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  Ends guest = make_ends();
  Ends endpoint = make_ends();
  std::uint64_t now_ns = 1'000;
  StreamOptions options;
  options.deadline_ns = 1'000'000;
  options.queue_max = kQueueMax;
  options.packet_max = kPacketMax;
  Stream stream(std::move(guest.near), std::move(endpoint.near), options, [&now_ns] { return ++now_ns; });
  if ((data[0] & 1) != 0) {
    say_hello(guest.far.get(), (data[0] & 2) != 0 ? 0xff : data[1]);
    say_hello(endpoint.far.get(), (data[0] & 4) != 0 ? 0xff : data[1]);
    turn(&stream);
    (void)discard(endpoint.far.get());
    (void)discard(guest.far.get());
  }
  for (std::size_t at = 2; at < size;) {
    const std::uint8_t control = data[at++];
    const std::size_t length = std::min<std::size_t>(control & 0x7f, size - at);
    const int to = (control & 0x80) != 0 ? guest.far.get() : endpoint.far.get();
    (void)send(to, data + at, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    at += length;
    const bool ended = stream.ended().has_value();
    turn(&stream);
    const std::size_t received = discard(endpoint.far.get()) + discard(guest.far.get());
    if (ended && received > 0) abort();
    check(stream, false);
  }
  endpoint.far.reset();
  for (int i = 0; i < 64 && !stream.fenced_at_ns(); ++i) turn(&stream);
  check(stream, true);
  if (!stream.fenced_at_ns()) abort();
  return 0;
}
