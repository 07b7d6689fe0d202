#include "daemon/relay/stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/text.h"
#include "daemon/relay/parser_callbacks.h"

namespace usblease::relay {
namespace {

constexpr std::size_t kInboxBytes = 64UL * 1024;
constexpr std::size_t kDetailMax = 256;  // before it is made printable
constexpr int kDrainReadsMax = 16;  // at one wake-up, so that a chatty endpoint cannot keep the loop from the daemon

const char* name_of(Side side) { return side == Side::kGuest ? "the guest's QEMU" : "the endpoint"; }

Side other(Side side) { return side == Side::kGuest ? Side::kEndpoint : Side::kGuest; }

// Not strerror(3) and not g_strerror: both may open locale files, which the sandbox forbids.
std::string describe_errno(int error_number) {
  const char* text = strerrordesc_np(error_number);
  return text != nullptr ? text : "error " + std::to_string(error_number);
}

}  // namespace

struct Stream::SideState {
  SideState(Stream* stream, Side which, UniqueFd descriptor, std::size_t packet_max)
      : side(which), context{stream, which}, fd(std::move(descriptor)), inbox(kInboxBytes), meter(packet_max) {}

  [[nodiscard]] std::span<const std::uint8_t> unparsed() const {
    return std::span(inbox).subspan(inbox_begin, inbox_end - inbox_begin);
  }

  Side side;
  ParserContext context;
  UniqueFd fd;
  std::vector<std::uint8_t> inbox;
  std::size_t inbox_begin = 0;
  std::size_t inbox_end = 0;
  PacketMeter meter;
  bool hello_done = false;
  PeerHello hello;
  ParserPtr parser;
};

Stream::Stream(UniqueFd guest, UniqueFd endpoint, StreamOptions options, Clock clock)
    : options_(options), clock_(std::move(clock)), hello_until_ns_(clock_() + options.endpoint_hello_wait_ns) {
  sides_[0] = std::make_unique<SideState>(this, Side::kGuest, std::move(guest), options.packet_max);
  sides_[1] = std::make_unique<SideState>(this, Side::kEndpoint, std::move(endpoint), options.packet_max);
}

Stream::~Stream() = default;

int Stream::fd(Side side) const {
  if (side == Side::kEndpoint && (endpoint_finished_ || endpoint_unknowable_) && ended_) return -1;
  return side_of(side).fd.get();
}

short Stream::poll_events(Side side) const {
  if (ended_) return side == Side::kEndpoint ? POLLIN : 0;
  const SideState& state = side_of(side);
  // Not reading, for whatever reason, must not hide that the peer has gone.
  short events = POLLRDHUP;
  if (!connected_) return static_cast<short>(state.hello_done ? events : events | POLLIN);
  if (state.unparsed().empty()) events |= POLLIN;
  if (usbredirparser_has_data_to_write(state.parser.get()) > 0) events |= POLLOUT;
  return events;
}

std::size_t Stream::queued(Side towards) const {
  const SideState& state = side_of(towards);
  return state.parser ? usbredirparser_get_bufferered_output_size(state.parser.get()) : 0;
}

// ---- deadline ----

void Stream::tick() {
  if (ended_) return;
  const std::uint64_t now_ns = clock_();
  if (now_ns >= options_.deadline_ns) {
    end(ENDING_DEADLINE, "the deadline has passed");
  } else if (!side_of(Side::kEndpoint).hello_done && now_ns >= hello_until_ns_) {
    end(ENDING_ENDPOINT_PROTOCOL, "the endpoint took the connection but said no hello in " +
                                      std::to_string(options_.endpoint_hello_wait_ns / 1'000'000) +
                                      " ms: it serves another stream, or it is no usbredir server");
  }
  finish();
}

std::uint64_t Stream::next_tick_ns() const {
  if (ended_) return 0;
  const bool awaits_hello = !side_of(Side::kEndpoint).hello_done;
  return awaits_hello ? std::min(options_.deadline_ns, hello_until_ns_) : options_.deadline_ns;
}

void Stream::renew(std::uint64_t deadline_ns) {
  tick();  // a renewal that comes too late must not bring back what has ended in the meantime
  if (!ended_) options_.deadline_ns = std::max(options_.deadline_ns, deadline_ns);
}

void Stream::revoke() {
  tick();
  end(ENDING_REVOKED, "the lease was revoked");
  finish();
}

// The one place where anything is written to either side. The clock is read once, right before the write, and the
// verdict is latched by end(): nothing can be written after it, whatever a later renewal or reading of the clock says.
int Stream::on_parser_write(Side to, std::span<const std::uint8_t> bytes) {
  if (ended_) return -1;
  const std::uint64_t now_ns = clock_();
  if (now_ns >= options_.deadline_ns) {
    end(ENDING_DEADLINE, "the deadline has passed");
    return -1;
  }
  const ssize_t sent = send(side_of(to).fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) {
    last_packet_ns_ = now_ns;
    return static_cast<int>(sent);
  }
  const int error_number = errno;
  if (error_number == EAGAIN || error_number == EINTR) return 0;
  // send(2) takes the socket's pending error away: a timeout would look like an end of stream to the next recv(2).
  const bool peer_closed = error_number == EPIPE || error_number == ECONNRESET;
  if (to == Side::kEndpoint && !peer_closed) endpoint_unknowable_ = true;
  end(to == Side::kGuest ? ENDING_GUEST_CLOSED : ENDING_ENDPOINT_CLOSED,
      std::string("cannot write to ") + name_of(to) + ": " + describe_errno(error_number));
  return -1;
}

// ---- reading ----

void Stream::on_ready(Side side, short revents) {
  if (revents == 0) return;
  tick();
  SideState& state = side_of(side);
  if (!ended_ && (revents & POLLOUT) != 0) pump();
  if (!ended_) {
    constexpr short kGone = POLLHUP | POLLERR | POLLRDHUP | POLLNVAL;
    const bool reads = (poll_events(side) & POLLIN) != 0;
    if (reads && (revents & (POLLIN | kGone)) != 0) {
      read_side(state);
    } else if ((revents & kGone) != 0) {
      on_end_of_stream(state, "closed the stream");
    }
  }
  if (ended_ && side == Side::kEndpoint) drain_endpoint();
  finish();
}

// Appends to the inbox. What counts as the endpoint's end of stream: EOF, or a reset. Any other error (a keepalive that
// was not answered, a network that went away) says nothing about what the endpoint still does.
Stream::Io Stream::receive(SideState& from) {
  if (from.inbox_begin == from.inbox_end) from.inbox_begin = from.inbox_end = 0;
  const auto room = std::span(from.inbox).subspan(from.inbox_end);
  const ssize_t got = recv(from.fd.get(), room.data(), room.size(), MSG_DONTWAIT);
  if (got > 0) {
    from.inbox_end += static_cast<std::size_t>(got);
    return Io::kOk;
  }
  const int error_number = got == 0 ? 0 : errno;
  if (error_number == EAGAIN || error_number == EINTR) return Io::kWait;
  const bool end_of_stream = error_number == 0 || error_number == ECONNRESET;
  if (from.side == Side::kEndpoint) {
    if (!end_of_stream) endpoint_unknowable_ = true;
    if (end_of_stream && !endpoint_unknowable_) endpoint_finished_ = true;
  }
  return end_of_stream ? Io::kEnd : Io::kFailed;
}

void Stream::read_side(SideState& from) {
  switch (receive(from)) {
    case Io::kWait:
      return;
    case Io::kEnd:
      return on_end_of_stream(from, "closed the stream");
    case Io::kFailed:
      return on_end_of_stream(from, "is out of reach");
    case Io::kOk:
      break;
  }
  if (connected_) {
    pump();
  } else {
    read_hello(from);
  }
}

void Stream::read_hello(SideState& from) {
  std::string problem;
  switch (parse_hello(from.unparsed(), &from.hello, &problem)) {
    case HelloState::kNeedMore:
      return;
    case HelloState::kBad:
      return end(from.side == Side::kGuest ? ENDING_GUEST_PROTOCOL : ENDING_ENDPOINT_PROTOCOL,
                 std::string(name_of(from.side)) + ": " + problem);
    case HelloState::kComplete:
      from.hello_done = true;
      if (side_of(other(from.side)).hello_done) start_forwarding();
  }
}

// Each side is told of the capabilities that the other side and the relay have both: so a packet that one of them may
// send is always one that the other can take, in the same layout on both sides.
void Stream::start_forwarding() {
  SideState& guest = side_of(Side::kGuest);
  SideState& endpoint = side_of(Side::kEndpoint);
  make_parser(guest, normalize_caps(supported_caps() & endpoint.hello.caps), true);
  make_parser(endpoint, normalize_caps(supported_caps() & guest.hello.caps), false);
  if (!guest.parser || !endpoint.parser) return end(ENDING_INTERNAL, "out of memory");
  const std::uint32_t common = supported_caps() & guest.hello.caps & endpoint.hello.caps;
  const bool wide = (common & (1U << usb_redir_cap_64bits_ids)) != 0;
  guest.meter.use_wide_ids(wide);
  endpoint.meter.use_wide_ids(wide);
  connected_ = endpoint.hello.version;
  pump();
}

void Stream::make_parser(SideState& side, std::uint32_t caps, bool as_usb_host) {
  side.parser = create_forwarding_parser(&side.context);
  if (!side.parser) return;
  usbredirparser_init(side.parser.get(), "usblease-relay " USBLEASE_VERSION, &caps, 1,
                      as_usb_host ? usbredirparser_fl_usb_host : 0);
}

// ---- forwarding ----

// Until nothing moves: neither parsing (no bytes, or too much waits for the other side) nor writing.
void Stream::pump() {
  if (!connected_) return;
  bool moved = true;
  while (moved && !ended_) {
    moved = false;
    for (const Side side : {Side::kGuest, Side::kEndpoint}) {
      moved = parse_side(side_of(side)) || moved;
      moved = flush_side(side_of(other(side))) || moved;
    }
  }
}

bool Stream::parse_side(SideState& from) {
  if (ended_ || from.unparsed().empty() || queued(other(from.side)) >= options_.queue_max) return false;
  const std::size_t before = from.inbox_begin;
  reading_ = &from;
  const int result = usbredirparser_do_read(from.parser.get());
  if (result == usbredirparser_read_parse_error) on_parser_error("it is not usbredir");
  reading_ = nullptr;
  return from.inbox_begin != before;
}

bool Stream::flush_side(SideState& to) {
  if (ended_ || usbredirparser_has_data_to_write(to.parser.get()) == 0) return false;
  const std::size_t before = queued(to.side);
  (void)usbredirparser_do_write(to.parser.get());  // what it comes to is seen in on_parser_write
  return queued(to.side) != before;
}

int Stream::on_parser_read(Side side, std::span<std::uint8_t> room) {
  SideState& from = side_of(side);
  if (ended_) return -1;
  if (queued(other(side)) >= options_.queue_max) return 0;
  const std::size_t count = std::min(room.size(), from.unparsed().size());
  if (count == 0) return 0;
  const auto bytes = from.unparsed().first(count);
  std::copy(bytes.begin(), bytes.end(), room.begin());
  from.inbox_begin += count;
  if (!from.meter.push(bytes)) {
    const std::string announced = std::to_string(from.meter.announced());
    on_parser_error(
        ("a packet of " + announced + " bytes; at most " + std::to_string(options_.packet_max) + " are allowed")
            .c_str());
    return -1;
  }
  return static_cast<int>(count);
}

// libusbredirparser logs at this level what it cannot parse, and what it drops. A stream with a packet missing is worth
// less than none, so each of these ends it.
void Stream::on_parser_error(const char* message) {
  if (reading_ == nullptr) return end(ENDING_INTERNAL, message);
  end(reading_->side == Side::kGuest ? ENDING_GUEST_PROTOCOL : ENDING_ENDPOINT_PROTOCOL,
      std::string(name_of(reading_->side)) + ": " + message);
}

// A lease binds to one enumeration of a device; a second one on the same stream is not covered by it.
void Stream::on_device(DeviceIds device) {
  if (device_) {
    end(ENDING_ENDPOINT_CLOSED, "the endpoint announced a second device on this stream; the lease was for the first");
  } else if (!ended_) {
    device_ = device;
  }
}

usbredirparser* Stream::forward_target(Side from) { return ended_ ? nullptr : side_of(other(from)).parser.get(); }

// ---- the end ----

void Stream::on_end_of_stream(SideState& side, const std::string& detail) {
  pump();  // what it said before is still under the lease
  end(side.side == Side::kGuest ? ENDING_GUEST_CLOSED : ENDING_ENDPOINT_CLOSED,
      std::string(name_of(side.side)) + " " + detail);
}

void Stream::end(Ending why, const std::string& detail) {
  if (ended_) return;
  ended_ = StreamEnd{why, escape_text(std::string_view(detail).substr(0, kDetailMax)), clock_(), last_packet_ns_};
  side_of(Side::kGuest).fd.reset();
  // Tells the endpoint that no more comes; its own end of stream is the answer that counts.
  (void)shutdown(side_of(Side::kEndpoint).fd.get(), SHUT_WR);
}

void Stream::drain_endpoint() {
  SideState& endpoint = side_of(Side::kEndpoint);
  for (int i = 0; i < kDrainReadsMax && !endpoint_finished_ && !endpoint_unknowable_; ++i) {
    endpoint.inbox_begin = endpoint.inbox_end = 0;
    if (receive(endpoint) == Io::kWait) return;
  }
}

// Not inside of libusbredirparser's own calls: there the parsers must live on.
void Stream::finish() {
  if (!ended_) return;
  for (auto& side : sides_) side->parser.reset();
  if (endpoint_finished_ && !endpoint_unknowable_ && !fenced_at_ns_) fenced_at_ns_ = clock_();
}

}  // namespace usblease::relay
