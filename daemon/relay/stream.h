// One stream between a guest's QEMU and a usbredir endpoint: both directions parsed, checked against the deadline,
// forwarded. No threads, no timers of its own, no logging: the caller polls, and calls tick() when it wakes.
//
// Its life: hello (both sides' hellos are awaited) → forwarding → ended (latched; the endpoint is drained until its own
// end of stream) → fenced.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/fd.h"
#include "daemon/relay/wire.h"
#include "relay.pb.h"

struct usbredirparser;

namespace usblease::relay {

struct StreamOptions {
  std::uint64_t deadline_ns = 0;                          // CLOCK_BOOTTIME
  std::uint64_t endpoint_hello_wait_ns = 10'000'000'000;  // a paused guest says hello late, an endpoint has no excuse
  std::size_t queue_max = 1024UL * 1024;                  // a side is not read while more waits for the other one
  std::size_t packet_max = kPacketMax;
};

struct StreamEnd {
  Ending why = ENDING_UNSPECIFIED;
  std::string detail;  // printable, at most 1 KiB
  std::uint64_t at_ns = 0;
  std::uint64_t last_packet_ns = 0;  // the check before the last write that went out; 0: nothing ever did
};

struct DeviceIds {
  std::uint16_t vendor = 0;
  std::uint16_t product = 0;
};

enum class Side : std::uint8_t { kGuest = 0, kEndpoint = 1 };

class Stream {
 public:
  using Clock = std::function<std::uint64_t()>;  // CLOCK_BOOTTIME in nanoseconds

  // No call on either descriptor blocks, whatever its flags are.
  Stream(UniqueFd guest, UniqueFd endpoint, StreamOptions options, Clock clock);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // -1: nothing to poll for that side any more.
  [[nodiscard]] int fd(Side side) const;
  [[nodiscard]] short poll_events(Side side) const;
  void on_ready(Side side, short revents);

  // Ends the stream if its deadline, or the wait for the endpoint's hello, is over. Call first after each wake-up.
  void tick();
  // When tick() has something to do next; 0: never.
  [[nodiscard]] std::uint64_t next_tick_ns() const;

  // An earlier deadline than the present one is ignored, and so is any once the stream has ended.
  void renew(std::uint64_t deadline_ns);
  void revoke();

  [[nodiscard]] std::uint64_t deadline_ns() const { return options_.deadline_ns; }
  // The endpoint's version, once both hellos were good.
  [[nodiscard]] const std::optional<std::string>& connected() const { return connected_; }
  [[nodiscard]] const std::optional<DeviceIds>& device() const { return device_; }
  [[nodiscard]] const std::optional<StreamEnd>& ended() const { return ended_; }
  // Set once the stream has ended and the endpoint's own end of stream was seen.
  [[nodiscard]] std::optional<std::uint64_t> fenced_at_ns() const { return fenced_at_ns_; }
  // The endpoint's connection failed in a way that is no end of stream: it will never be seen.
  [[nodiscard]] bool endpoint_unknowable() const { return endpoint_unknowable_; }
  [[nodiscard]] std::size_t queued(Side towards) const;

  // What libusbredirparser calls back, for parser_callbacks.cc.
  int on_parser_read(Side from, std::span<std::uint8_t> room);
  int on_parser_write(Side to, std::span<const std::uint8_t> bytes);
  void on_parser_error(const char* message);
  void on_device(DeviceIds device);
  // The parser that a packet from `from` goes to; nullptr once the stream has ended.
  usbredirparser* forward_target(Side from);

 private:
  struct SideState;
  // What a read or write of a descriptor came to.
  enum class Io : std::uint8_t { kOk, kWait, kEnd, kFailed };

  [[nodiscard]] SideState& side_of(Side side) const { return *sides_[static_cast<std::size_t>(side)]; }
  Io receive(SideState& from);
  void read_side(SideState& from);
  void read_hello(SideState& from);
  void start_forwarding();
  void make_parser(SideState& side, std::uint32_t caps, bool as_usb_host);
  void pump();
  bool parse_side(SideState& from);
  bool flush_side(SideState& to);
  void drain_endpoint();
  void on_end_of_stream(SideState& side, const std::string& detail);
  void end(Ending why, const std::string& detail);
  void finish();

  StreamOptions options_;
  Clock clock_;
  std::array<std::unique_ptr<SideState>, 2> sides_;
  std::uint64_t hello_until_ns_ = 0;
  std::uint64_t last_packet_ns_ = 0;
  const SideState* reading_ = nullptr;  // whose bytes libusbredirparser is looking at
  std::optional<std::string> connected_;
  std::optional<DeviceIds> device_;
  std::optional<StreamEnd> ended_;
  std::optional<std::uint64_t> fenced_at_ns_;
  bool endpoint_finished_ = false;
  bool endpoint_unknowable_ = false;
};

}  // namespace usblease::relay
