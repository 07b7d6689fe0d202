// The stream class over socket pairs, with a clock of the test's own: nothing here waits or depends on the machine.
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <usbredirfilter.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <utility>

#include "daemon/relay/stream.h"
#include "tests/unit/relay/check_framework.h"
#include "tests/unit/relay/peer.h"

namespace {

using usblease::UniqueFd;
using usblease::relay::Side;
using usblease::relay::Stream;
using usblease::relay::StreamOptions;
using usblease::test::kAllCaps;
using usblease::test::Packet;
using usblease::test::Peer;
using usblease::test::Role;
namespace relay = usblease::relay;

constexpr std::uint64_t kStartNs = 1'000'000'000'000;
constexpr std::uint64_t kDeadlineNs = kStartNs + 5'000'000'000;

std::pair<UniqueFd, UniqueFd> make_pair() {
  std::array<int, 2> fds{};
  ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

StreamOptions default_options() {
  StreamOptions options;
  options.deadline_ns = kDeadlineNs;
  return options;
}

// Guest, stream and endpoint in one thread.
struct Rig {
  explicit Rig(std::uint32_t guest_caps = kAllCaps, std::uint32_t endpoint_caps = kAllCaps,
               StreamOptions options = default_options()) {
    auto [guest_near, guest_far] = make_pair();
    auto [endpoint_near, endpoint_far] = make_pair();
    guest = std::make_unique<Peer>(std::move(guest_far), Role::kGuest, guest_caps);
    endpoint = std::make_unique<Peer>(std::move(endpoint_far), Role::kEndpoint, endpoint_caps);
    stream = std::make_unique<Stream>(std::move(guest_near), std::move(endpoint_near), options, [this] {
      if (++clock_reads == deadline_at_read) now_ns = kDeadlineNs;
      return now_ns;
    });
  }

  // One round of the relay's loop, without waiting.
  bool step_stream() {
    std::array<pollfd, 2> ready{};
    for (const Side side : {Side::kGuest, Side::kEndpoint}) {
      ready[static_cast<std::size_t>(side)] = {stream->fd(side), stream->poll_events(side), 0};
    }
    const int count = poll(ready.data(), ready.size(), 0);
    stream->tick();
    stream->on_ready(Side::kGuest, ready[0].revents);
    stream->on_ready(Side::kEndpoint, ready[1].revents);
    return count > 0;
  }

  // Until nothing moves any more.
  void spin() {
    for (int round = 0; round < 100'000; ++round) {
      bool moved = guest->flush();
      moved = endpoint->flush() || moved;
      moved = step_stream() || moved;
      if (guest_reads) moved = guest->receive() || moved;
      if (endpoint_reads) moved = endpoint->receive() || moved;
      if (!moved) return;
    }
    ck_abort_msg("the stream never comes to rest");
  }

  void connect() {
    spin();
    ck_assert(stream->connected().has_value());
  }

  void expect_ended(relay::Ending why) {
    ck_assert_msg(stream->ended().has_value(), "the stream has not ended");
    ck_assert_msg(stream->ended()->why == why, "ended as %d (%s), not as %d", stream->ended()->why,
                  stream->ended()->detail.c_str(), why);
    ck_assert(!stream->ended()->detail.empty());
  }

  std::uint64_t now_ns = kStartNs;
  int clock_reads = 0;
  int deadline_at_read = 0;
  bool guest_reads = true;
  bool endpoint_reads = true;
  std::unique_ptr<Peer> guest;
  std::unique_ptr<Peer> endpoint;
  std::unique_ptr<Stream> stream;
};

void send_reset(Rig* rig) { usbredirparser_send_reset(rig->guest->parser()); }

void send_out(Peer* guest, std::uint64_t id, const std::string& data) {
  usb_redir_bulk_packet_header header{};
  header.endpoint = 0x02;
  header.length = static_cast<std::uint16_t>(data.size() & 0xffff);
  header.length_high = static_cast<std::uint16_t>(data.size() >> 16);
  std::string copy = data;
  usbredirparser_send_bulk_packet(guest->parser(), id, &header, reinterpret_cast<std::uint8_t*>(copy.data()),
                                  static_cast<int>(copy.size()));
}

void send_in(Peer* endpoint, std::uint64_t id, const std::string& data) {
  usb_redir_bulk_packet_header header{};
  header.endpoint = 0x82;
  header.length = static_cast<std::uint16_t>(data.size() & 0xffff);
  header.length_high = static_cast<std::uint16_t>(data.size() >> 16);
  std::string copy = data;
  usbredirparser_send_bulk_packet(endpoint->parser(), id, &header, reinterpret_cast<std::uint8_t*>(copy.data()),
                                  static_cast<int>(copy.size()));
}

// ---- every packet ----

// Sends one packet; what the receiver must record is what a peer that is connected directly records.
using Send = std::function<void(usbredirparser*)>;

template <auto Function, typename Header>
Send with_id(std::uint64_t id, Header header) {
  return [=](usbredirparser* to) {
    Header copy = header;
    Function(to, id, &copy);
  };
}
template <auto Function, typename Header>
Send with_header(Header header) {
  return [=](usbredirparser* to) {
    Header copy = header;
    Function(to, &copy);
  };
}
template <auto Function, typename Header>
Send with_data(std::uint64_t id, Header header, const std::string& data) {
  return [=](usbredirparser* to) {
    Header copy = header;
    std::string bytes = data;
    Function(to, id, &copy, bytes.empty() ? nullptr : reinterpret_cast<std::uint8_t*>(bytes.data()),
             static_cast<int>(bytes.size()));
  };
}

constexpr std::uint64_t kWideId = 0x1122334455667788;

std::vector<Send> guest_packets(bool all_caps) {
  const std::uint64_t id = all_caps ? kWideId : 0x11223344;
  std::vector<Send> out = {
      usbredirparser_send_reset,
      with_id<usbredirparser_send_set_configuration>(id, usb_redir_set_configuration_header{3}),
      [=](usbredirparser* to) { usbredirparser_send_get_configuration(to, id); },
      with_id<usbredirparser_send_set_alt_setting>(id, usb_redir_set_alt_setting_header{1, 2}),
      with_id<usbredirparser_send_get_alt_setting>(id, usb_redir_get_alt_setting_header{1}),
      with_id<usbredirparser_send_start_iso_stream>(id, usb_redir_start_iso_stream_header{0x83, 8, 2}),
      with_id<usbredirparser_send_stop_iso_stream>(id, usb_redir_stop_iso_stream_header{0x83}),
      with_id<usbredirparser_send_start_interrupt_receiving>(id, usb_redir_start_interrupt_receiving_header{0x81}),
      with_id<usbredirparser_send_stop_interrupt_receiving>(id, usb_redir_stop_interrupt_receiving_header{0x81}),
      with_id<usbredirparser_send_alloc_bulk_streams>(id, usb_redir_alloc_bulk_streams_header{0x20004, 16}),
      with_id<usbredirparser_send_free_bulk_streams>(id, usb_redir_free_bulk_streams_header{0x20004}),
      [=](usbredirparser* to) { usbredirparser_send_cancel_data_packet(to, id); },
      with_data<usbredirparser_send_control_packet>(id, usb_redir_control_packet_header{0, 9, 0x21, 0, 1, 2, 4},
                                                    "ctrl"),
      with_data<usbredirparser_send_control_packet>(id, usb_redir_control_packet_header{0x80, 6, 0x80, 0, 1, 2, 18},
                                                    ""),
      with_data<usbredirparser_send_bulk_packet>(id, usb_redir_bulk_packet_header{0x02, 0, 5, 7, 0}, "bytes"),
      with_data<usbredirparser_send_bulk_packet>(id, usb_redir_bulk_packet_header{0x82, 0, 512, 0, 0}, ""),
      with_data<usbredirparser_send_iso_packet>(id, usb_redir_iso_packet_header{0x03, 0, 3}, "iso"),
      with_data<usbredirparser_send_interrupt_packet>(id, usb_redir_interrupt_packet_header{0x04, 0, 2}, "in"),
  };
  if (!all_caps) return out;
  out.push_back(usbredirparser_send_filter_reject);
  out.push_back([](usbredirparser* to) {
    const std::array<usbredirfilter_rule, 2> rules{{{8, 0x1234, -1, -1, 1}, {-1, -1, -1, -1, 0}}};
    usbredirparser_send_filter_filter(to, rules.data(), 2);
  });
  out.push_back(
      with_id<usbredirparser_send_start_bulk_receiving>(id, usb_redir_start_bulk_receiving_header{9, 4096, 0x82, 4}));
  out.push_back(with_id<usbredirparser_send_stop_bulk_receiving>(id, usb_redir_stop_bulk_receiving_header{9, 0x82}));
  out.push_back(with_data<usbredirparser_send_bulk_packet>(id, usb_redir_bulk_packet_header{0x02, 0, 0x1170, 0, 1},
                                                           std::string(0x11170, 'x')));
  return out;
}

std::vector<Send> endpoint_packets(bool all_caps) {
  const std::uint64_t id = all_caps ? kWideId : 0x11223344;
  usb_redir_interface_info_header interfaces{};
  interfaces.interface_count = 2;
  interfaces.interface[1] = 1;
  interfaces.interface_class[0] = 3;
  usb_redir_ep_info_header endpoints{};
  endpoints.type[2] = usb_redir_type_bulk;
  endpoints.interval[18] = 4;
  endpoints.max_packet_size[2] = all_caps ? 512 : 0;
  endpoints.max_streams[2] = all_caps ? 16 : 0;
  usb_redir_device_connect_header device{usb_redir_speed_high, 1, 2, 3, 0x1209, 0x0001, 0x0100};
  if (!all_caps) device.device_version_bcd = 0;
  std::vector<Send> out = {
      with_header<usbredirparser_send_interface_info>(interfaces),
      with_header<usbredirparser_send_ep_info>(endpoints),
      with_header<usbredirparser_send_device_connect>(device),
      with_id<usbredirparser_send_configuration_status>(id, usb_redir_configuration_status_header{0, 1}),
      with_id<usbredirparser_send_alt_setting_status>(id, usb_redir_alt_setting_status_header{4, 1, 2}),
      with_id<usbredirparser_send_iso_stream_status>(id, usb_redir_iso_stream_status_header{0, 0x83}),
      with_id<usbredirparser_send_interrupt_receiving_status>(id, usb_redir_interrupt_receiving_status_header{0, 0x81}),
      with_id<usbredirparser_send_bulk_streams_status>(id, usb_redir_bulk_streams_status_header{0x20004, 16, 0}),
      with_data<usbredirparser_send_control_packet>(id, usb_redir_control_packet_header{0x80, 6, 0x80, 0, 1, 2, 4},
                                                    "desc"),
      with_data<usbredirparser_send_bulk_packet>(id, usb_redir_bulk_packet_header{0x82, 0, 5, 7, 0}, "bytes"),
      with_data<usbredirparser_send_bulk_packet>(id, usb_redir_bulk_packet_header{0x02, 4, 5, 0, 0}, ""),
      with_data<usbredirparser_send_iso_packet>(id, usb_redir_iso_packet_header{0x83, 0, 3}, "iso"),
      with_data<usbredirparser_send_interrupt_packet>(id, usb_redir_interrupt_packet_header{0x81, 0, 2}, "in"),
      with_data<usbredirparser_send_interrupt_packet>(id, usb_redir_interrupt_packet_header{0x04, 0, 2}, ""),
      usbredirparser_send_device_disconnect,
  };
  if (!all_caps) return out;
  out.insert(out.end() - 1, with_id<usbredirparser_send_bulk_receiving_status>(
                                id, usb_redir_bulk_receiving_status_header{9, 0x82, 0}));
  out.insert(out.end() - 1, with_data<usbredirparser_send_buffered_bulk_packet>(
                                id, usb_redir_buffered_bulk_packet_header{9, 8, 0x82, 0}, "buffered"));
  out.insert(out.end() - 1, [](usbredirparser* to) {
    const usbredirfilter_rule rule{-1, -1, -1, -1, 1};
    usbredirparser_send_filter_filter(to, &rule, 1);
  });
  return out;
}

// The same packets over a stream without a relay: the reference.
std::vector<Packet> direct(const std::vector<Send>& packets, Role sender_role, std::uint32_t caps) {
  auto [a, b] = make_pair();
  Peer sender(std::move(a), sender_role, caps);
  Peer receiver(std::move(b), sender_role == Role::kGuest ? Role::kEndpoint : Role::kGuest, caps);
  const auto spin = [&] {
    for (bool moved = true; moved;) {
      moved = false;
      for (Peer* peer : {&sender, &receiver}) {
        moved = peer->flush() || moved;
        moved = peer->receive() || moved;
      }
    }
  };
  spin();
  for (const Send& send : packets) {
    send(sender.parser());
    spin();
  }
  return receiver.received;
}

void compare(const std::vector<Packet>& got, const std::vector<Packet>& want) {
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    ck_assert_msg(got[i] == want[i], "packet %zu: got %s, want %s", i, usblease::test::describe(got[i]).c_str(),
                  usblease::test::describe(want[i]).c_str());
  }
  ck_assert_uint_eq(got.size(), want.size());
}

void forwards_all(bool all_caps) {
  const std::uint32_t caps = all_caps ? kAllCaps : 0;
  Rig rig(caps, caps);
  rig.connect();
  const auto from_guest = guest_packets(all_caps);
  const auto from_endpoint = endpoint_packets(all_caps);
  for (const Send& send : from_guest) {
    send(rig.guest->parser());
    rig.spin();
  }
  const auto want = direct(from_guest, Role::kGuest, caps);
  ck_assert_uint_eq(want.size(), from_guest.size());  // the reference itself lost none
  compare(rig.endpoint->received, want);
  for (const Send& send : from_endpoint) {
    send(rig.endpoint->parser());
    rig.spin();
  }
  const auto want_back = direct(from_endpoint, Role::kEndpoint, caps);
  ck_assert_uint_eq(want_back.size(), from_endpoint.size());
  compare(rig.guest->received, want_back);
  ck_assert(!rig.stream->ended().has_value());
  ck_assert_uint_eq(rig.stream->device()->vendor, 0x1209);
  ck_assert_uint_eq(rig.stream->device()->product, 0x0001);
}

START_TEST(every_packet_both_ways) { forwards_all(true); }
END_TEST

START_TEST(every_packet_without_capabilities) { forwards_all(false); }
END_TEST

START_TEST(one_disconnect_ack_reaches_the_endpoint) {
  Rig rig;
  rig.connect();
  usbredirparser_send_device_disconnect(rig.endpoint->parser());
  rig.spin();
  ck_assert_uint_eq(rig.endpoint->received.size(), 1);
  ck_assert_str_eq(rig.endpoint->received[0].type.c_str(), "device_disconnect_ack");
}
END_TEST

// ---- hello ----

START_TEST(hello_carries_both_versions) {
  Rig rig;
  rig.connect();
  ck_assert_str_eq(rig.stream->connected()->c_str(), "test endpoint");
  ck_assert_int_eq(rig.guest->peer_version().rfind("usblease-relay", 0), 0);
  ck_assert_int_eq(rig.endpoint->peer_version().rfind("usblease-relay", 0), 0);
}
END_TEST

START_TEST(each_side_is_told_what_the_other_side_can) {
  constexpr std::uint32_t kStreams = 1U << usb_redir_cap_bulk_streams;
  constexpr std::uint32_t kMaxPacket = 1U << usb_redir_cap_ep_info_max_packet_size;
  constexpr std::uint32_t kAck = 1U << usb_redir_cap_device_disconnect_ack;
  const auto valid = [](std::uint32_t caps) { return (caps & kMaxPacket) != 0 ? caps : caps & ~kStreams; };
  for (std::uint32_t i = 0; i < 256; ++i) {
    const std::uint32_t guest_caps = valid(i);
    const std::uint32_t endpoint_caps = valid((i * 37 + 11) & 0xff);
    Rig rig(guest_caps, endpoint_caps);
    rig.connect();
    ck_assert_uint_eq(rig.guest->peer_caps(), endpoint_caps);
    // The usb-guest's side of libusbredirparser always acknowledges: so do the real guest's and ours.
    ck_assert_uint_eq(rig.endpoint->peer_caps(), guest_caps | kAck);
    send_reset(&rig);
    rig.spin();
    ck_assert_uint_eq(rig.endpoint->received.size(), 1);
  }
}
END_TEST

START_TEST(a_late_guest_is_waited_for) {
  Rig rig;
  rig.endpoint->flush();
  rig.step_stream();
  rig.now_ns += 4'000'000'000;
  rig.step_stream();
  ck_assert(!rig.stream->ended().has_value());
  ck_assert_uint_eq(rig.endpoint->bytes_received(), 0);  // nothing is said to it before the guest has spoken
  rig.connect();
}
END_TEST

START_TEST(a_silent_endpoint_is_given_up) {
  StreamOptions options = default_options();
  options.endpoint_hello_wait_ns = 1'000'000'000;
  Rig rig(kAllCaps, kAllCaps, options);
  rig.guest->flush();
  rig.step_stream();
  ck_assert_uint_eq(rig.stream->next_tick_ns(), kStartNs + 1'000'000'000);
  rig.now_ns += 999'999'999;
  rig.step_stream();
  ck_assert(!rig.stream->ended().has_value());
  rig.now_ns += 1;
  rig.step_stream();
  rig.expect_ended(relay::ENDING_ENDPOINT_PROTOCOL);
  ck_assert_uint_eq(rig.stream->next_tick_ns(), 0);
}
END_TEST

START_TEST(either_side_may_close_before_the_hello) {
  {
    Rig rig;
    rig.endpoint->flush();
    rig.step_stream();
    rig.endpoint->close();  // after its hello, before the guest's
    rig.step_stream();
    rig.step_stream();
    rig.expect_ended(relay::ENDING_ENDPOINT_CLOSED);
    ck_assert(rig.stream->fenced_at_ns().has_value());
  }
  Rig rig;
  rig.guest->flush();
  rig.step_stream();
  rig.guest->close();
  rig.step_stream();
  rig.expect_ended(relay::ENDING_GUEST_CLOSED);
  ck_assert(!rig.stream->fenced_at_ns().has_value());
}
END_TEST

// ---- deadline ----

START_TEST(passes_until_one_ns_before_the_deadline) {
  Rig rig;
  rig.connect();
  rig.now_ns = kDeadlineNs - 1;
  send_reset(&rig);
  rig.spin();
  ck_assert_uint_eq(rig.endpoint->received.size(), 1);
  send_in(rig.endpoint.get(), 1, "x");
  rig.spin();
  ck_assert_uint_eq(rig.guest->received.size(), 1);
  ck_assert(!rig.stream->ended().has_value());
}
END_TEST

START_TEST(nothing_passes_at_the_deadline) {
  for (const bool from_guest : {true, false}) {
    Rig rig;
    rig.connect();
    if (from_guest) {
      send_reset(&rig);
    } else {
      send_in(rig.endpoint.get(), 1, "x");
    }
    rig.now_ns = kDeadlineNs;
    rig.spin();
    rig.expect_ended(relay::ENDING_DEADLINE);
    ck_assert_uint_eq(rig.endpoint->received.size() + rig.guest->received.size(), 0);
    ck_assert(rig.guest->end_of_stream());
    ck_assert(rig.endpoint->end_of_stream());
    ck_assert(!rig.stream->fenced_at_ns().has_value());
    ck_assert_uint_lt(rig.stream->ended()->last_packet_ns, kDeadlineNs);
    rig.endpoint->close();
    rig.spin();
    ck_assert(rig.stream->fenced_at_ns().has_value());
  }
}
END_TEST

// The deadline passes between the wake-up and the write: only the check at the write itself can see it.
START_TEST(the_write_itself_is_checked) {
  Rig rig;
  rig.connect();
  send_reset(&rig);
  rig.guest->flush();
  rig.now_ns = kDeadlineNs - 1;
  rig.deadline_at_read = rig.clock_reads + 2;  // the first reading is on_ready's own, the second is the write's
  rig.stream->on_ready(Side::kGuest, POLLIN);
  ck_assert_int_ge(rig.clock_reads, rig.deadline_at_read);
  rig.expect_ended(relay::ENDING_DEADLINE);
  rig.spin();
  ck_assert_uint_eq(rig.endpoint->received.size(), 0);
}
END_TEST

START_TEST(one_reading_of_the_clock_for_one_write) {
  Rig rig;
  rig.connect();
  for (int i = 0; i < 10; ++i) send_reset(&rig);
  rig.guest->flush();
  const int before = rig.clock_reads;
  rig.stream->on_ready(Side::kGuest, POLLIN);
  ck_assert_int_eq(rig.clock_reads, before + 1 + 10);
}
END_TEST

START_TEST(the_verdict_is_latched) {
  Rig rig;
  rig.connect();
  rig.now_ns = kDeadlineNs;
  rig.stream->renew(kDeadlineNs + 1'000'000'000);  // too late, and before anything else has noticed
  rig.expect_ended(relay::ENDING_DEADLINE);
  rig.now_ns = kDeadlineNs - 1'000;  // not even a clock that went back
  rig.stream->renew(kDeadlineNs * 2);
  send_reset(&rig);
  rig.spin();
  ck_assert_uint_eq(rig.endpoint->received.size(), 0);
  ck_assert_uint_eq(rig.stream->deadline_ns(), kDeadlineNs);
}
END_TEST

START_TEST(a_renewal_extends_and_never_shortens) {
  Rig rig;
  rig.connect();
  ck_assert_uint_eq(rig.stream->next_tick_ns(), kDeadlineNs);
  rig.stream->renew(kDeadlineNs - 1);
  ck_assert_uint_eq(rig.stream->deadline_ns(), kDeadlineNs);
  rig.stream->renew(kDeadlineNs + 10);
  rig.now_ns = kDeadlineNs + 9;
  send_reset(&rig);
  rig.spin();
  ck_assert_uint_eq(rig.endpoint->received.size(), 1);
  rig.now_ns = kDeadlineNs + 10;
  rig.spin();
  rig.expect_ended(relay::ENDING_DEADLINE);
}
END_TEST

START_TEST(revoke_ends_at_once) {
  Rig rig;
  rig.connect();
  send_reset(&rig);
  rig.guest->flush();
  rig.stream->revoke();
  rig.spin();
  rig.expect_ended(relay::ENDING_REVOKED);
  ck_assert_uint_eq(rig.endpoint->received.size(), 0);
  ck_assert(rig.guest->end_of_stream());
  ck_assert(rig.endpoint->end_of_stream());
}
END_TEST

START_TEST(a_deadline_in_the_past_lets_nothing_pass) {
  StreamOptions options = default_options();
  options.deadline_ns = kStartNs;
  Rig rig(kAllCaps, kAllCaps, options);
  rig.spin();
  rig.expect_ended(relay::ENDING_DEADLINE);
  ck_assert_uint_eq(rig.endpoint->bytes_received(), 0);
  ck_assert_uint_eq(rig.stream->ended()->last_packet_ns, 0);
}
END_TEST

// ---- the end of streams ----

START_TEST(the_endpoints_close_is_a_fence) {
  Rig rig;
  rig.connect();
  send_in(rig.endpoint.get(), 1, "last words");
  rig.endpoint->flush();
  rig.endpoint->close();
  rig.spin();
  rig.expect_ended(relay::ENDING_ENDPOINT_CLOSED);
  ck_assert(rig.stream->fenced_at_ns().has_value());
  ck_assert_uint_eq(rig.guest->received.size(), 1);  // said under the lease, so it arrives
  ck_assert_int_eq(rig.stream->fd(Side::kEndpoint), -1);
}
END_TEST

START_TEST(the_guests_close_is_no_fence) {
  Rig rig;
  rig.connect();
  rig.guest->close();
  rig.spin();
  rig.expect_ended(relay::ENDING_GUEST_CLOSED);
  ck_assert(rig.endpoint->end_of_stream());
  // The endpoint goes on talking: it is heard, not listened to.
  for (int i = 0; i < 50; ++i) {
    send_in(rig.endpoint.get(), 1, std::string(10'000, 'x'));
    rig.spin();
  }
  ck_assert(!rig.stream->fenced_at_ns().has_value());
  rig.now_ns += 1'000'000'000'000;
  rig.spin();
  ck_assert(!rig.stream->fenced_at_ns().has_value());
  rig.endpoint->close();
  rig.spin();
  ck_assert(rig.stream->fenced_at_ns() == rig.now_ns);
}
END_TEST

START_TEST(a_reset_is_an_end_of_stream) {
  Rig rig;
  rig.connect();
  rig.endpoint_reads = false;
  send_out(rig.guest.get(), 1, "never read");  // closing with unread bytes resets a Unix stream
  rig.spin();
  rig.endpoint->close();
  rig.spin();
  rig.expect_ended(relay::ENDING_ENDPOINT_CLOSED);
  ck_assert(rig.stream->fenced_at_ns().has_value());
}
END_TEST

START_TEST(a_second_device_ends_the_stream) {
  Rig rig;
  rig.connect();
  const usb_redir_device_connect_header device{usb_redir_speed_full, 0, 0, 0, 0x1209, 1, 0};
  for (int i = 0; i < 2; ++i) {
    usb_redir_device_connect_header copy = device;
    usbredirparser_send_device_connect(rig.endpoint->parser(), &copy);
    usbredirparser_send_device_disconnect(rig.endpoint->parser());
    rig.spin();
  }
  rig.expect_ended(relay::ENDING_ENDPOINT_CLOSED);
  ck_assert_uint_eq(rig.guest->received.size(), 2);
}
END_TEST

// A connection that times out says nothing about what the endpoint still does: never a fence. In a network namespace
// of its own, whose loopback goes down.
void set_loopback(bool up) {
  const UniqueFd control(socket(AF_INET, SOCK_DGRAM, 0));
  ifreq request{};
  request.ifr_name[0] = 'l';
  request.ifr_name[1] = 'o';
  request.ifr_flags = static_cast<short>(up ? IFF_UP : 0);
  ck_assert_int_eq(ioctl(control.get(), SIOCSIFFLAGS, &request), 0);
}

std::pair<UniqueFd, UniqueFd> make_tcp_pair() {
  const UniqueFd listener(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  ck_assert_int_eq(bind(listener.get(), generic, length), 0);
  ck_assert_int_eq(listen(listener.get(), 1), 0);
  ck_assert_int_eq(getsockname(listener.get(), generic, &length), 0);
  UniqueFd near(socket(AF_INET, SOCK_STREAM, 0));
  ck_assert_int_eq(connect(near.get(), generic, length), 0);
  UniqueFd far(accept(listener.get(), nullptr, nullptr));
  return {std::move(near), std::move(far)};
}

void times_out(bool seen_by_send) {
  if (unshare(CLONE_NEWNET) != 0) return;  // not allowed here
  set_loopback(true);
  auto [near, far] = make_tcp_pair();
  constexpr int kTimeoutMs = 300;
  ck_assert_int_eq(setsockopt(near.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &kTimeoutMs, sizeof kTimeoutMs), 0);
  const int raw = near.get();
  Rig rig;
  auto [guest_near, guest_far] = make_pair();
  rig.guest = std::make_unique<Peer>(std::move(guest_far), Role::kGuest);
  rig.endpoint = std::make_unique<Peer>(std::move(far), Role::kEndpoint);
  rig.stream = std::make_unique<Stream>(std::move(guest_near), std::move(near), default_options(),
                                        [&rig] { return rig.now_ns; });
  for (int i = 0; i < 100 && !rig.stream->connected(); ++i) {
    rig.spin();
    poll(nullptr, 0, 1);
  }
  ck_assert(rig.stream->connected().has_value());
  set_loopback(false);
  send_reset(&rig);
  rig.guest->flush();
  rig.stream->on_ready(Side::kGuest, POLLIN);
  pollfd failed{raw, POLLRDHUP, 0};
  ck_assert_int_eq(poll(&failed, 1, 20'000), 1);
  ck_assert((failed.revents & POLLERR) != 0);
  if (seen_by_send) {
    send_reset(&rig);
    rig.guest->flush();
    rig.stream->on_ready(Side::kGuest, POLLIN);
  }
  rig.spin();
  rig.expect_ended(relay::ENDING_ENDPOINT_CLOSED);
  ck_assert(rig.stream->endpoint_unknowable());
  ck_assert(!rig.stream->fenced_at_ns().has_value());
  ck_assert_int_eq(rig.stream->fd(Side::kEndpoint), -1);  // nothing to poll, or the relay would spin
  rig.stream->on_ready(Side::kEndpoint, POLLIN | POLLHUP);
  ck_assert(!rig.stream->fenced_at_ns().has_value());
}

START_TEST(a_timeout_is_no_end_of_stream) { times_out(_i == 1); }
END_TEST

// ---- bad input ----

std::string words(std::initializer_list<std::uint32_t> list) {
  std::string out;
  for (const std::uint32_t word : list) out.append(reinterpret_cast<const char*>(&word), sizeof word);
  return out;
}

START_TEST(garbage_instead_of_a_hello) {
  for (const bool guest : {true, false}) {
    for (const std::string& garbage : {std::string("SSH-2.0-x\r\n"), words({0, 0x7fffffff, 0}), words({0, 63, 0}),
                                       words({0, 68 + 64, 0}), words({1, 10, 0})}) {
      Rig rig;
      (guest ? rig.guest : rig.endpoint)->send_raw(garbage);
      rig.step_stream();
      rig.expect_ended(guest ? relay::ENDING_GUEST_PROTOCOL : relay::ENDING_ENDPOINT_PROTOCOL);
      ck_assert_uint_eq((guest ? rig.endpoint : rig.guest)->bytes_received(), 0);
    }
  }
}
END_TEST

START_TEST(garbage_after_the_hello) {
  const std::vector<std::string> garbage = {
      words({77, 0, 0, 0}),                                // no such type
      words({usb_redir_reset, 5, 0, 0}) + "12345",         // a body where none belongs
      words({usb_redir_bulk_packet, 3, 0, 0}) + "123",     // shorter than its header
      words({usb_redir_bulk_packet, 0x80000001, 0, 0}),    // negative as an int
      words({usb_redir_filter_filter, 4, 0, 0}) + "1,2,",  // not terminated
      words({usb_redir_filter_filter, 4, 0, 0}) + std::string("x|y\0", 4),
      std::string(64, '\xff'),
  };
  for (const bool guest : {true, false}) {
    for (const std::string& bytes : garbage) {
      Rig rig;
      rig.connect();
      (guest ? rig.guest : rig.endpoint)->send_raw(bytes);
      rig.spin();
      rig.expect_ended(guest ? relay::ENDING_GUEST_PROTOCOL : relay::ENDING_ENDPOINT_PROTOCOL);
      ck_assert_uint_eq((guest ? rig.endpoint : rig.guest)->received.size(), 0);
    }
  }
}
END_TEST

START_TEST(packets_of_the_wrong_direction) {
  Rig rig;
  rig.connect();
  rig.guest->send_raw(words({usb_redir_device_disconnect, 0, 0, 0}));
  rig.spin();
  rig.expect_ended(relay::ENDING_GUEST_PROTOCOL);
  Rig other;
  other.connect();
  other.endpoint->send_raw(words({usb_redir_reset, 0, 0, 0}));
  other.spin();
  other.expect_ended(relay::ENDING_ENDPOINT_PROTOCOL);
}
END_TEST

START_TEST(a_second_hello) {
  Rig rig;
  rig.connect();
  rig.guest->send_raw(words({usb_redir_hello, 68, 0, 0}) + std::string(68, '\0'));
  rig.spin();
  rig.expect_ended(relay::ENDING_GUEST_PROTOCOL);
}
END_TEST

START_TEST(an_oversized_packet_ends_the_stream_at_its_header) {
  for (const bool guest : {true, false}) {
    StreamOptions options = default_options();
    options.packet_max = 70'000;
    Rig rig(kAllCaps, kAllCaps, options);
    rig.connect();
    Peer& sender = guest ? *rig.guest : *rig.endpoint;
    const auto most = static_cast<std::uint32_t>(options.packet_max);
    (guest ? send_out : send_in)(&sender, 1, std::string(most - 10, 'x'));  // the bulk header is 10 bytes
    rig.spin();
    ck_assert(!rig.stream->ended().has_value());
    ck_assert_uint_eq((guest ? rig.endpoint : rig.guest)->received.size(), 1);
    sender.send_raw(words({usb_redir_bulk_packet, most + 1, 0, 0}));
    rig.spin();
    rig.expect_ended(guest ? relay::ENDING_GUEST_PROTOCOL : relay::ENDING_ENDPOINT_PROTOCOL);
    ck_assert(rig.stream->ended()->detail.find("70001") != std::string::npos);
  }
}
END_TEST

START_TEST(a_close_within_a_packet) {
  for (const bool guest : {true, false}) {
    Rig rig;
    rig.connect();
    auto& sender = guest ? rig.guest : rig.endpoint;
    sender->send_raw(words({usb_redir_bulk_packet, 1010, 0, 0}) + "half of it");
    rig.spin();
    sender->close();
    rig.spin();
    rig.expect_ended(guest ? relay::ENDING_GUEST_CLOSED : relay::ENDING_ENDPOINT_CLOSED);
    ck_assert_uint_eq((guest ? rig.endpoint : rig.guest)->received.size(), 0);
    ck_assert(rig.stream->fenced_at_ns().has_value() == !guest);
  }
}
END_TEST

START_TEST(byte_by_byte_is_the_same) {
  Rig rig;
  rig.connect();
  const std::string packet =
      words({usb_redir_bulk_packet, 10 + 5, 42, 0}) + std::string("\x02\0\5\0\0\0\0\0\0\0", 10) + "bytes";
  for (const char c : packet) {
    ck_assert_uint_eq(rig.endpoint->received.size(), 0);
    rig.guest->send_raw({&c, 1});
    rig.spin();
  }
  ck_assert_uint_eq(rig.endpoint->received.size(), 1);
  ck_assert_str_eq(rig.endpoint->received[0].data.c_str(), "bytes");
  ck_assert_uint_eq(rig.endpoint->received[0].id, 42);
}
END_TEST

// ---- back-pressure ----

START_TEST(a_slow_side_bounds_the_queue) {
  for (const bool to_endpoint : {true, false}) {
    StreamOptions options = default_options();
    options.queue_max = 100'000;
    Rig rig(kAllCaps, kAllCaps, options);
    rig.connect();
    (to_endpoint ? rig.endpoint_reads : rig.guest_reads) = false;
    constexpr std::size_t kPacketBytes = 20'000;
    constexpr std::size_t kPackets = 200;
    Peer& sender = to_endpoint ? *rig.guest : *rig.endpoint;
    Peer& receiver = to_endpoint ? *rig.endpoint : *rig.guest;
    for (std::size_t i = 0; i < kPackets; ++i) {
      (to_endpoint ? send_out : send_in)(&sender, i, std::string(kPacketBytes, static_cast<char>('a' + i % 26)));
    }
    rig.spin();
    const Side towards = to_endpoint ? Side::kEndpoint : Side::kGuest;
    ck_assert_uint_ge(rig.stream->queued(towards), options.queue_max);
    ck_assert_uint_le(rig.stream->queued(towards), options.queue_max + kPacketBytes + 100);
    ck_assert_int_gt(usbredirparser_has_data_to_write(sender.parser()), 0);  // the sender was stopped
    // The other direction is not held up.
    (to_endpoint ? send_in : send_out)(&receiver, 7, "other way");
    rig.spin();
    ck_assert_uint_eq(sender.received.size(), 1);
    rig.endpoint_reads = rig.guest_reads = true;
    rig.spin();
    ck_assert_uint_eq(receiver.received.size(), kPackets);
    for (std::size_t i = 0; i < kPackets; ++i) {
      ck_assert_uint_eq(receiver.received[i].id, i);
      ck_assert(receiver.received[i].data == std::string(kPacketBytes, static_cast<char>('a' + i % 26)));
    }
    ck_assert(!rig.stream->ended().has_value());
  }
}
END_TEST

START_TEST(a_close_is_seen_behind_a_full_queue) {
  for (const bool guest_closes : {true, false}) {
    StreamOptions options = default_options();
    options.queue_max = 10'000;
    Rig rig(kAllCaps, kAllCaps, options);
    rig.connect();
    rig.endpoint_reads = rig.guest_reads = false;
    for (int i = 0; i < 100; ++i) {
      (guest_closes ? send_out : send_in)((guest_closes ? rig.guest : rig.endpoint).get(), 1, std::string(20'000, 'x'));
    }
    rig.spin();
    (guest_closes ? rig.guest : rig.endpoint)->close();
    rig.spin();
    rig.expect_ended(guest_closes ? relay::ENDING_GUEST_CLOSED : relay::ENDING_ENDPOINT_CLOSED);
    ck_assert(rig.stream->fenced_at_ns().has_value() == !guest_closes);
  }
}
END_TEST

START_TEST(the_deadline_holds_for_what_is_queued) {
  Rig rig;
  rig.connect();
  rig.endpoint_reads = false;
  for (int i = 0; i < 40; ++i) send_out(rig.guest.get(), 1, std::string(20'000, 'x'));
  rig.spin();
  ck_assert_uint_gt(rig.stream->queued(Side::kEndpoint), 0);
  rig.now_ns = kDeadlineNs;
  // The socket becomes writable; only what had been written before arrives.
  int in_socket = 0;
  ck_assert_int_eq(ioctl(rig.endpoint->fd(), FIONREAD, &in_socket), 0);
  const std::size_t before = rig.endpoint->bytes_received();
  rig.endpoint_reads = true;
  rig.spin();
  rig.expect_ended(relay::ENDING_DEADLINE);
  ck_assert(rig.endpoint->end_of_stream());
  ck_assert_uint_eq(rig.endpoint->bytes_received() - before, static_cast<std::size_t>(in_socket));
}
END_TEST

Suite* make_suite() {
  Suite* suite = suite_create("relay-stream");
  const auto add = [suite](const char* name, std::initializer_list<const TTest*> tests) {
    TCase* group = tcase_create(name);
    for (const TTest* test : tests) tcase_add_test(group, test);
    tcase_set_timeout(group, 60);
    suite_add_tcase(suite, group);
    return group;
  };
  add("forwarding", {every_packet_both_ways, every_packet_without_capabilities, one_disconnect_ack_reaches_the_endpoint,
                     byte_by_byte_is_the_same});
  add("hello", {hello_carries_both_versions, each_side_is_told_what_the_other_side_can, a_late_guest_is_waited_for,
                a_silent_endpoint_is_given_up, either_side_may_close_before_the_hello});
  add("deadline", {passes_until_one_ns_before_the_deadline, nothing_passes_at_the_deadline, the_write_itself_is_checked,
                   one_reading_of_the_clock_for_one_write, the_verdict_is_latched, a_renewal_extends_and_never_shortens,
                   revoke_ends_at_once, a_deadline_in_the_past_lets_nothing_pass});
  TCase* ends = add("ends", {the_endpoints_close_is_a_fence, the_guests_close_is_no_fence, a_reset_is_an_end_of_stream,
                             a_second_device_ends_the_stream});
  tcase_add_loop_test(ends, a_timeout_is_no_end_of_stream, 0, 2);
  add("bad input", {garbage_instead_of_a_hello, garbage_after_the_hello, packets_of_the_wrong_direction, a_second_hello,
                    an_oversized_packet_ends_the_stream_at_its_header, a_close_within_a_packet});
  add("back-pressure",
      {a_slow_side_bounds_the_queue, a_close_is_seen_behind_a_full_queue, the_deadline_holds_for_what_is_queued});
  return suite;
}

}  // namespace

int main() {
  SRunner* runner = srunner_create(make_suite());
  srunner_run_all(runner, CK_NORMAL);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
