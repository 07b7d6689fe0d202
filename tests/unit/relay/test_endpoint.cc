// connect_endpoint and probe_endpoint against the dongle, and against endpoints that misbehave; and the dongle itself.
#include <fcntl.h>
#include <glib.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <optional>

#include "common/unix_socket.h"
#include "daemon/host/endpoint.h"
#include "tests/devices/cdc_descriptors.h"
#include "tests/unit/relay/check_framework.h"
#include "tests/unit/relay/harness.h"
#include "tests/unit/relay/peer.h"

namespace {

using namespace usblease::test;
using usblease::ErrorCode;
using usblease::Result;
using usblease::UniqueFd;
using usblease::host::EndpointDevice;

constexpr std::uint32_t kTimeoutMs = 5'000;

Result<EndpointDevice> probe(const std::string& address, std::uint32_t timeout_ms = kTimeoutMs) {
  std::optional<Result<EndpointDevice>> out;
  const auto call = usblease::host::probe_endpoint(address, timeout_ms,
                                                   [&out](Result<EndpointDevice> result) { out = std::move(result); });
  ck_assert(!out.has_value());  // never inside the call
  wait_until("the probe answers", [&out] { return out.has_value(); });
  return *out;
}

Result<UniqueFd> connect_to(const std::string& address, std::uint32_t timeout_ms = kTimeoutMs) {
  std::optional<Result<UniqueFd>> out;
  const auto call = usblease::host::connect_endpoint(address, timeout_ms,
                                                     [&out](Result<UniqueFd> result) { out = std::move(result); });
  ck_assert(!out.has_value());
  wait_until("the connection is made or not", [&out] { return out.has_value(); });
  return std::move(*out);
}

void expect_error(const Result<EndpointDevice>& result, ErrorCode code, const char* part) {
  ck_assert_msg(!result.has_value(), "the probe found a device");
  ck_assert_msg(result.error().code == code, "another code for: %s", result.error().message.c_str());
  ck_assert_msg(result.error().message.find(part) != std::string::npos, "no \"%s\" in: %s", part,
                result.error().message.c_str());
}

int option_of(const UniqueFd& fd, int level, int option) {
  int value = 0;
  socklen_t length = sizeof value;
  ck_assert_int_eq(getsockopt(fd.get(), level, option, &value, &length), 0);
  return value;
}

START_TEST(probe_finds_the_device) {
  const TempDir directory;
  const DongleProcess dongle(directory, {"--vendor", "1209", "--product", "abcd"});
  for (int i = 0; i < 3; ++i) {  // each ends its stream, or the next would hear nothing
    const auto found = probe(dongle.address());
    ck_assert_msg(found.has_value(), "%s", found ? "" : found.error().message.c_str());
    ck_assert_uint_eq(found->vendor, 0x1209);
    ck_assert_uint_eq(found->product, 0xabcd);
    ck_assert_str_eq(found->version.c_str(), "usbredir-dongle");
  }
  wait_until("three streams ended", [&] { return dongle.count("end") == 3; });
}
END_TEST

START_TEST(over_tcp) {
  const TempDir directory;
  const DongleProcess dongle(directory, {}, "tcp:127.0.0.1:0");
  const auto found = probe(dongle.address());
  ck_assert_msg(found.has_value(), "%s", found ? "" : found.error().message.c_str());
  const std::string by_name = "tcp:localhost:" + dongle.address().substr(dongle.address().rfind(':') + 1);
  const auto fd = connect_to(by_name);
  ck_assert_msg(fd.has_value(), "%s", fd ? "" : fd.error().message.c_str());
  ck_assert_int_ne(option_of(*fd, IPPROTO_TCP, TCP_NODELAY), 0);
  ck_assert_int_ne(option_of(*fd, SOL_SOCKET, SO_KEEPALIVE), 0);
  ck_assert_int_ne(fcntl(fd->get(), F_GETFL) & O_NONBLOCK, 0);
  ck_assert_int_ne(fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
}
END_TEST

START_TEST(nobody_listens) {
  const TempDir directory;
  expect_error(probe("unix:" + directory.path("none")), ErrorCode::kUnavailable, "start the server");
  expect_error(probe("tcp:127.0.0.1:1"), ErrorCode::kUnavailable, "start the server");
  expect_error(probe("tcp:no-such-host.invalid:4000"), ErrorCode::kUnavailable, "no-such-host.invalid");
}
END_TEST

START_TEST(bad_addresses) {
  const std::string too_long = "unix:/" + std::string(107, 'x');
  for (const char* address :
       {"", "unix:relative", "tcp:host", "tcp:host:0", "tcp:host:99999", "tcp::4000", "udp:h:1", too_long.c_str()}) {
    const auto fd = connect_to(address);
    ck_assert_msg(!fd.has_value(), "%s", address);
    ck_assert_msg(fd.error().code == ErrorCode::kBadInput, "%s: %s", address, fd.error().message.c_str());
  }
}
END_TEST

START_TEST(endpoints_that_misbehave) {
  struct Case {
    const char* how;
    ErrorCode code;
    const char* part;
  };
  const std::array<Case, 5> cases{{{"garbage", ErrorCode::kBadInput, "not usbredir"},
                                   {"close-mid-packet", ErrorCode::kBadInput, "within its hello"},
                                   {"silent", ErrorCode::kTimedOut, "no hello within 300 ms"},
                                   {"no-device", ErrorCode::kUnavailable, "announces no device"},
                                   {"never-close", ErrorCode::kTimedOut, "does not end the stream"}}};
  for (const Case& one : cases) {
    const TempDir directory;
    const DongleProcess dongle(directory, {"--misbehave", one.how});
    expect_error(probe(dongle.address(), 300), one.code, one.part);
  }
}
END_TEST

START_TEST(an_endpoint_serves_one_stream_at_a_time) {
  const TempDir directory;
  const DongleProcess dongle(directory, {});
  auto first = connect_to(dongle.address());
  ck_assert(first.has_value());
  expect_error(probe(dongle.address(), 300), ErrorCode::kTimedOut, "no hello");
  first->reset();
  ck_assert(probe(dongle.address()).has_value());
}
END_TEST

START_TEST(an_endpoint_that_closes_at_once) {
  const TempDir directory;
  const auto listener = usblease::listen_unix(directory.path("s"), 0600, SOCK_STREAM);
  std::optional<Result<EndpointDevice>> out;
  const auto call = usblease::host::probe_endpoint("unix:" + directory.path("s"), kTimeoutMs,
                                                   [&out](Result<EndpointDevice> result) { out = std::move(result); });
  wait_until("a connection", [&] { return UniqueFd(accept(listener->get(), nullptr, nullptr)).get() >= 0; });
  wait_until("an answer", [&out] { return out.has_value(); });
  expect_error(*out, ErrorCode::kUnavailable, "plugged in");
}
END_TEST

// Everything that may come after a hello, and must not: nothing may fall through to a callback that is not there.
START_TEST(packets_nobody_asked_for) {
  const auto header = [](std::uint32_t type, const std::string& body) {
    const std::array<std::uint32_t, 4> words = {type, static_cast<std::uint32_t>(body.size()), 1, 0};
    return std::string(reinterpret_cast<const char*>(words.data()), sizeof words) + body;
  };
  const std::vector<std::string> packets = {
      header(usb_redir_device_disconnect, ""),
      header(usb_redir_configuration_status, std::string(2, '\0')),
      header(usb_redir_alt_setting_status, std::string(3, '\0')),
      header(usb_redir_iso_stream_status, std::string(2, '\0')),
      header(usb_redir_interrupt_receiving_status, std::string("\0\x81", 2)),
      header(usb_redir_bulk_streams_status, std::string(9, '\0')),
      header(usb_redir_bulk_receiving_status, std::string("\0\0\0\0\x81\0", 6)),
      header(usb_redir_control_packet, std::string("\x80\6\x80\0\0\1\0\0\1\0x", 11)),
      header(usb_redir_bulk_packet, std::string("\x82\0\1\0\0\0\0\0\0\0x", 11)),
      header(usb_redir_iso_packet, std::string("\x83\0\1\0x", 5)),
      header(usb_redir_interrupt_packet, std::string("\x81\0\1\0x", 5)),
      header(usb_redir_buffered_bulk_packet, std::string("\0\0\0\0\1\0\0\0\x82\0x", 11)),
      header(usb_redir_reset, ""),
      header(usb_redir_bulk_packet, "").replace(4, 4, std::string("\xff\xff\xff\x07", 4)),
  };
  for (const std::string& packet : packets) {
    const TempDir directory;
    const auto listener = usblease::listen_unix(directory.path("s"), 0600, SOCK_STREAM);
    std::optional<Result<EndpointDevice>> out;
    const auto call = usblease::host::probe_endpoint(
        "unix:" + directory.path("s"), 2'000, [&out](Result<EndpointDevice> result) { out = std::move(result); });
    UniqueFd accepted;
    wait_until("a connection", [&] {
      accepted.reset(accept(listener->get(), nullptr, nullptr));
      return accepted.get() >= 0;
    });
    Peer endpoint(std::move(accepted), Role::kEndpoint);
    endpoint.flush();
    wait_until("its hello", [&] { return endpoint.receive() || endpoint.hello_seen(); });
    endpoint.send_raw(packet + std::string(64, '\0'));
    endpoint.close();
    wait_until("an answer", [&out] { return out.has_value(); });
    ck_assert(!out->has_value());
  }
}
END_TEST

START_TEST(a_cancelled_call_says_nothing) {
  const TempDir directory;
  const DongleProcess dongle(directory, {"--misbehave", "silent"});
  bool called = false;
  {
    const auto one = usblease::host::probe_endpoint(dongle.address(), 100, [&](auto) { called = true; });
    const auto two = usblease::host::connect_endpoint(dongle.address(), 100, [&](auto) { called = true; });
    const auto three = usblease::host::connect_endpoint("nonsense", 100, [&](auto) { called = true; });
    const auto four = usblease::host::connect_endpoint("tcp:localhost:1", 100, [&](auto) { called = true; });
  }
  auto five = usblease::host::probe_endpoint(dongle.address(), 100, [&](auto) { called = true; });
  wait_until("its stream", [&] { return dongle.count("connect") >= 1; });
  five.reset();
  run_for(300);
  ck_assert(!called);
}
END_TEST

START_TEST(a_call_may_end_itself) {
  std::unique_ptr<usblease::host::EndpointCall> call;
  bool called = false;
  call = usblease::host::probe_endpoint("unix:/nonexistent/socket", 1'000, [&](auto) {
    call.reset();
    called = true;
  });
  wait_until("an answer", [&] { return called; });
}
END_TEST

// ---- the dongle ----

struct DongleRig {
  DongleRig() : dongle(directory, {"--serial", "ABC-1"}) {
    auto fd = connect_to(dongle.address());
    ck_assert(fd.has_value());
    guest = std::make_unique<Peer>(std::move(*fd), Role::kGuest);
    wait("a device", [this] { return !guest->received.empty() && guest->received.back().type == "device_connect"; });
    guest->received.clear();
  }
  void wait(const char* what, const std::function<bool()>& so) {
    wait_until(what, [&] {
      guest->flush();
      guest->receive();
      return so();
    });
  }
  Packet control(usb_redir_control_packet_header header) {
    guest->received.clear();
    usbredirparser_send_control_packet(guest->parser(), 5, &header, nullptr, 0);
    wait("an answer", [this] { return !guest->received.empty(); });
    return guest->received[0];
  }
  static unsigned status_of(const Packet& packet) {
    return static_cast<unsigned char>(packet.header[offsetof(usb_redir_control_packet_header, status)]);
  }
  TempDir directory;
  DongleProcess dongle;
  std::unique_ptr<Peer> guest;
};

START_TEST(the_dongle_describes_itself) {
  DongleRig rig;
  const auto descriptor = [&rig](std::uint16_t value, std::uint16_t length) {
    return rig.control({0x80, 6, 0x80, 0, value, 0, length});
  };
  const Packet device = descriptor(0x0100, 64);
  ck_assert_uint_eq(device.data.size(), 18);
  const Packet head = descriptor(0x0200, 9);
  ck_assert_uint_eq(head.data.size(), 9);
  const auto total = static_cast<unsigned char>(head.data[2]);
  const Packet whole = descriptor(0x0200, 255);
  ck_assert_uint_eq(whole.data.size(), total);
  std::size_t sum = 0;
  std::size_t interfaces = 0;
  std::size_t endpoints = 0;
  while (sum < whole.data.size()) {
    interfaces += whole.data[sum + 1] == 4 ? 1 : 0;
    endpoints += whole.data[sum + 1] == 5 ? 1 : 0;
    ck_assert_int_gt(whole.data[sum], 1);
    sum += static_cast<unsigned char>(whole.data[sum]);
  }
  ck_assert_uint_eq(sum, total);
  ck_assert_uint_eq(interfaces, 2);
  ck_assert_uint_eq(endpoints, 3);
  const auto want = usblease::dongle::string_descriptor("ABC-1");
  ck_assert(descriptor(0x0303, 255).data == std::string(want.begin(), want.end()));
  ck_assert_uint_eq(DongleRig::status_of(descriptor(0x0600, 10)), usb_redir_stall);
  ck_assert_uint_eq(DongleRig::status_of(rig.control({0x80, 0x21, 0xA1, 0, 0, 0, 7})), usb_redir_success);
  ck_assert_uint_eq(DongleRig::status_of(rig.control({0x80, 0x77, 0xA1, 0, 0, 0, 7})), usb_redir_stall);
}
END_TEST

START_TEST(the_dongle_holds_and_cancels_reads) {
  DongleRig rig;
  usb_redir_bulk_packet_header in{0x82, 0, 64, 0, 0};
  usbredirparser_send_bulk_packet(rig.guest->parser(), 1, &in, nullptr, 0);
  usbredirparser_send_bulk_packet(rig.guest->parser(), 2, &in, nullptr, 0);
  usbredirparser_send_cancel_data_packet(rig.guest->parser(), 1);
  usbredirparser_send_cancel_data_packet(rig.guest->parser(), 99);  // unknown: no answer
  usb_redir_start_interrupt_receiving_header interrupt{0x81};
  usbredirparser_send_start_interrupt_receiving(rig.guest->parser(), 3, &interrupt);
  std::string line = "ping 41\r\nnonsense\nping 42\n";
  usb_redir_bulk_packet_header out{0x02, 0, static_cast<std::uint16_t>(line.size()), 0, 0};
  usbredirparser_send_bulk_packet(rig.guest->parser(), 4, &out, reinterpret_cast<std::uint8_t*>(line.data()),
                                  static_cast<int>(line.size()));
  rig.wait("four answers", [&rig] { return rig.guest->received.size() >= 4; });
  const auto& got = rig.guest->received;
  ck_assert_uint_eq(got[0].id, 1);
  ck_assert_uint_eq(static_cast<unsigned char>(got[0].header[1]), usb_redir_cancelled);
  ck_assert_str_eq(got[1].type.c_str(), "interrupt_receiving_status");
  ck_assert_uint_eq(got[2].id, 4);
  ck_assert_uint_eq(got[3].id, 2);
  ck_assert_str_eq(got[3].data.c_str(), "pong 41 ABC-1\n");
  usbredirparser_send_bulk_packet(rig.guest->parser(), 6, &in, nullptr, 0);
  rig.wait("what was kept", [&rig] { return rig.guest->received.size() >= 5; });
  ck_assert_str_eq(rig.guest->received[4].data.c_str(), "pong 42 ABC-1\n");
  ck_assert_uint_eq(rig.dongle.count("line"), 3);
}
END_TEST

Suite* make_suite() {
  Suite* suite = suite_create("relay-endpoint");
  const auto add = [suite](const char* name, std::initializer_list<const TTest*> tests) {
    TCase* group = tcase_create(name);
    for (const TTest* test : tests) tcase_add_test(group, test);
    tcase_set_timeout(group, 60);
    suite_add_tcase(suite, group);
  };
  add("probe", {probe_finds_the_device, over_tcp, nobody_listens, bad_addresses, endpoints_that_misbehave,
                an_endpoint_serves_one_stream_at_a_time, an_endpoint_that_closes_at_once, packets_nobody_asked_for,
                a_cancelled_call_says_nothing, a_call_may_end_itself});
  add("dongle", {the_dongle_describes_itself, the_dongle_holds_and_cancels_reads});
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
