// Peers that are not of this cluster, or are but misbehave: nobody gets in, and nobody else is delayed.
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/cluster/transport_kit.h"

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::test;

namespace {

Validity past() { return {wall_clock_unix_s() - 7'200, wall_clock_unix_s() - 60}; }

// `a` dials `b`; neither lets the other in, and a says `part`.
void check_untrusted(const Identity& a_identity, const Identity& b_identity, const std::string& part) {
  Node a(a_identity);
  Node b(b_identity);
  a.transport->set_peers({b.peer()});
  ck_wait(a.downs.size() >= 3);
  for (const Down& down : a.downs) {
    ck_assert_msg(down.reason == DownReason::kUntrusted && down.why.find(part) != std::string::npos, "%s: %s",
                  down_reason_name(down.reason), down.why.c_str());
  }
  ck_assert(b.story.empty());
  ck_assert(std::none_of(a.story.begin(), a.story.end(), [](const std::string& event) { return event == "up b"; }));
}

START_TEST(another_ca) {
  const Kit kit;
  const Kit other;  // calls its cluster the same
  check_untrusted(kit.host("a"), other.host("b"), "not of this cluster's CA");
  // Only the server minds: the dialer trusts both.
  Identity trusting = other.host("a");
  trusting.authorities = kit.authority().certificate + other.authority().certificate;
  check_untrusted(trusting, kit.host("b"), "does not know the CA");
}
END_TEST

START_TEST(expired) {
  const Kit kit;
  check_untrusted(kit.host("a"), kit.unchecked("b", "", past()), "expired");
  check_untrusted(kit.unchecked("a", "", past()), kit.host("b"), "not valid now");
  const std::uint64_t now_s = wall_clock_unix_s();
  check_untrusted(kit.host("a"), kit.unchecked("b", "", {now_s + 3'600, now_s + 7'200}), "not valid yet");
}
END_TEST

START_TEST(another_cluster_or_host) {
  const Kit kit;
  check_untrusted(kit.host("a"), kit.unchecked("b", "c2"), "another cluster, c2");
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  a.transport->set_peers({{"c", {b.address()}}});
  ck_wait(a.downs.size() >= 2);
  ck_assert(a.was_down(DownReason::kUntrusted, "it is host b, not c"));
  ck_assert(b.story.empty());
}
END_TEST

// The alert of the server, 0: it let the peer in. TLS 1.3 tells a client only after its handshake.
int knock(std::uint16_t port, const RawPeer::Options& options) {
  RawPeer peer(connect_to(port), options);
  const int error = peer.handshake();
  if (error == GNUTLS_E_FATAL_ALERT_RECEIVED) return peer.alert();
  if (error < 0) return -1;
  peer.send(encode_frame("let me in"));
  if (peer.receive(kFrameHeaderBytes).size() == kFrameHeaderBytes) return 0;
  return peer.error() == GNUTLS_E_FATAL_ALERT_RECEIVED ? peer.alert() : -1;
}

START_TEST(strangers_hear_why) {
  const Kit kit;
  Node b(kit.host("b"));
  const std::uint16_t port = b.transport->port();
  const Identity host = kit.host("a");
  const Identity elsewhere = kit.unchecked("a", "c2");
  beside([&] {
    RawPeer::Options options;
    ck_assert_int_eq(knock(port, options), GNUTLS_A_CERTIFICATE_REQUIRED);
    options.identity = &elsewhere;
    ck_assert_int_eq(knock(port, options), GNUTLS_A_BAD_CERTIFICATE);
    options.identity = &host;
    options.alpn = "";
    ck_assert_int_eq(knock(port, options), GNUTLS_A_NO_APPLICATION_PROTOCOL);
    options.alpn = "h2";
    ck_assert_int_eq(knock(port, options), GNUTLS_A_NO_APPLICATION_PROTOCOL);
    options.alpn = "usblease/1";
    options.priority = "NORMAL:-VERS-ALL:+VERS-TLS1.2";
    ck_assert_int_eq(knock(port, options), GNUTLS_A_PROTOCOL_VERSION);
  });
  ck_assert(b.story.empty());
  // The same peer with all of it in order is let in: so each refusal above had its own cause.
  beside([&] {
    RawPeer::Options options;
    options.identity = &host;
    ck_assert_int_eq(knock(port, options), 0);
  });
  ck_wait(b.story.size() == 2);
  ck_assert_text_eq(b.story[0], std::string("accepted a"));
}
END_TEST

// Everything comes back that a server has to say to those bytes, until it hangs up.
std::string say_plainly(std::uint16_t port, const std::string& bytes) {
  const UniqueFd fd = connect_to(port);
  ck_assert(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  std::string got(65'536, '\0');
  std::size_t have = 0;
  for (;;) {
    const ssize_t count = recv(fd.get(), got.data() + have, got.size() - have, 0);
    if (count <= 0) break;
    have += static_cast<std::size_t>(count);
  }
  got.resize(have);
  return got;
}

START_TEST(plaintext_and_garbage) {
  const Kit kit;
  Node b(kit.host("b"));
  const std::uint16_t port = b.transport->port();
  beside([&] {
    for (const std::string& bytes :
         {std::string("GET / HTTP/1.1\r\n\r\n"), encode_frame("hello"), std::string(100'000, '\xff'),
          std::string("\x16\x03\x01\xff\xff", 5) + std::string(70'000, 'x'),
          std::string("\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", 9) + std::string(16'384, '\0')}) {
      const std::string answer = say_plainly(port, bytes);
      ck_assert_uint_lt(answer.size(), 64);  // an alert at most
    }
  });
  ck_assert(b.story.empty());
  Node a(kit.host("a"));
  a.transport->set_peers({b.peer()});
  ck_wait(a.transport->connected("b"));
}
END_TEST

START_TEST(half_a_handshake_is_cut_off_and_delays_nobody) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.handshake_ms = 700;
  options.unauthenticated_max = 8;
  Node b(kit.host("b"), options);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 100; ++i) {
    silent.push_back(connect_to(b.transport->port()));
    ck_assert(static_cast<bool>(silent.back()));
    if (i % 2 == 0) ck_assert(send(silent.back().get(), "\x16\x03\x01\x02\x00\x01", 6, MSG_NOSIGNAL) == 6);
  }
  // All from the address that the host comes from as well: the oldest go.
  Node a(kit.host("a"));
  a.transport->set_peers({b.peer()});
  ck_wait(a.transport->connected("b"));
  ck_assert(a.downs.empty());
  beside([&] {
    std::string rest(4096, '\0');
    for (const UniqueFd& fd : silent) {
      while (recv(fd.get(), rest.data(), rest.size(), 0) > 0) continue;
    }
  });
  ck_assert(b.accepted.size() == 1);
}
END_TEST

START_TEST(a_server_that_only_listens) {
  const Kit kit;
  const Listening mute = listen_anywhere();
  TlsTransportOptions options = quick_options();
  options.handshake_ms = 200;
  Node a(kit.host("a"), options);
  a.transport->set_peers({{"b", {"127.0.0.1:" + std::to_string(mute.port)}}});
  ck_wait(!a.downs.empty());
  ck_assert(a.was_down(DownReason::kTimedOut, "did not authenticate within 200 ms"));
}
END_TEST

START_TEST(a_server_that_hangs_up_is_no_proof_of_its_death) {
  const Kit kit;
  const Listening listening = listen_anywhere();
  Node a(kit.host("a"));
  a.transport->set_peers({{"b", {"127.0.0.1:" + std::to_string(listening.port)}}});
  beside([&] { const UniqueFd hung_up(accept(listening.fd.get(), nullptr, nullptr)); });
  ck_wait(!a.downs.empty());
  ck_assert(a.downs[0].reason == DownReason::kClosed);
}
END_TEST

// A host of the cluster that is authenticated, then sends `bytes` and waits for the end. Returns the alert, -1: none.
int send_raw(std::uint16_t port, const Identity& identity, const std::string& bytes, bool hang_up) {
  RawPeer::Options options;
  options.identity = &identity;
  RawPeer peer(connect_to(port), options);
  ck_assert_int_eq(peer.handshake(), 0);
  ck_assert_uint_eq(peer.receive(kFrameHeaderBytes).size(), kFrameHeaderBytes);  // the welcome
  ck_assert(peer.send(bytes));
  if (hang_up) return -1;
  peer.receive(1);
  return peer.error() == GNUTLS_E_FATAL_ALERT_RECEIVED ? peer.alert() : -1;
}

START_TEST(broken_framing_after_a_good_handshake) {
  const Kit kit;
  Node b(kit.host("b"));
  const Identity host = kit.host("a");
  const std::uint16_t port = b.transport->port();
  beside([&] {
    // One byte more than is allowed.
    ck_assert_int_eq(send_raw(port, host, std::string("\x00\x10\x00\x01", 4), false), GNUTLS_A_DECODE_ERROR);
    ck_assert_int_eq(send_raw(port, host, std::string(10'000, '\xff'), false), GNUTLS_A_DECODE_ERROR);
    // What came whole before it is served.
    ck_assert_int_eq(send_raw(port, host, encode_frame("whole") + std::string(8, '\xff'), true), -1);
    // Cut.
    ck_assert_int_eq(send_raw(port, host, encode_frame(std::string(1'000, 'x')).substr(0, 500), true), -1);
  });
  ck_wait(b.story.size() == 8);
  for (std::size_t i = 0; i < b.story.size(); i += 2) {
    ck_assert_text_eq(b.story[i], std::string("accepted a"));
    ck_assert_text_eq(b.story[i + 1], std::string("gone a"));
  }
  ck_assert_uint_eq(b.requests.size(), 1);
  ck_assert_text_eq(b.requests[0], std::string("whole"));
}
END_TEST

START_TEST(a_peer_that_never_reads_is_cut_off_and_delays_nobody) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.output_bytes_max = 2 * kFramePayloadMax;
  Node b(kit.host("b"), options);
  Node good(kit.host("good"));
  good.transport->set_peers({b.peer()});
  const Identity host = kit.host("a");
  std::unique_ptr<RawPeer> lazy;
  beside([&] {
    RawPeer::Options raw;
    raw.identity = &host;
    lazy = std::make_unique<RawPeer>(connect_to(b.transport->port()), raw);
    ck_assert_int_eq(lazy->handshake(), 0);
  });
  ck_wait(b.accepted.size() == 2 && good.transport->connected("b"));
  AcceptedId id = 0;
  for (const auto& [accepted, name] : b.accepted) {
    if (name == "a") id = accepted;
  }
  // The kernel takes some megabytes; then the queue of ours is full.
  int taken = 0;
  while (taken < 64 && b.transport->answer(id, std::string(kFramePayloadMax, 'x'))) ++taken;
  ck_assert_int_lt(taken, 64);
  ck_assert_int_ge(taken, 1);
  ck_assert(good.transport->ask("b", "hello"));
  ck_wait(good.answers.size() == 1);
  ck_wait(b.accepted.size() == 1);
  ck_assert_text_eq(b.story.back(), std::string("gone a"));
}
END_TEST

START_TEST(a_peer_that_stops_reading_is_noticed_without_new_answers) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.silent_ms = 400;
  options.output_bytes_max = 64 * kFramePayloadMax;
  Node b(kit.host("b"), options);
  const Identity host = kit.host("a");
  std::unique_ptr<RawPeer> lazy;
  beside([&] {
    RawPeer::Options raw;
    raw.identity = &host;
    lazy = std::make_unique<RawPeer>(connect_to(b.transport->port()), raw);
    ck_assert_int_eq(lazy->handshake(), 0);
  });
  ck_wait(b.accepted.size() == 1);
  for (int i = 0; i < 32; ++i)
    ck_assert(b.transport->answer(b.accepted.begin()->first, std::string(kFramePayloadMax, 'x')));
  ck_wait(b.accepted.empty());
}
END_TEST

START_TEST(a_silent_host_is_given_up) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.silent_ms = 400;
  Node b(kit.host("b"), options);
  const Identity host = kit.host("a");
  std::unique_ptr<RawPeer> silent;
  beside([&] {
    RawPeer::Options raw;
    raw.identity = &host;
    silent = std::make_unique<RawPeer>(connect_to(b.transport->port()), raw);
    ck_assert_int_eq(silent->handshake(), 0);
  });
  ck_wait(b.accepted.size() == 1);
  ck_wait(b.accepted.empty());
}
END_TEST

START_TEST(a_silent_server_is_given_up) {
  const Kit kit;
  const Listening listening = listen_anywhere();
  const Identity host = kit.host("b");
  TlsTransportOptions options = quick_options();
  options.silent_ms = 400;
  Node a(kit.host("a"), options);
  a.transport->set_peers({{"b", {"127.0.0.1:" + std::to_string(listening.port)}}});
  std::unique_ptr<RawPeer> server;
  beside([&] {
    RawPeer::Options raw;
    raw.identity = &host;
    raw.server = true;
    server = std::make_unique<RawPeer>(UniqueFd(accept(listening.fd.get(), nullptr, nullptr)), raw);
    ck_assert_int_eq(server->handshake(), 0);
    ck_assert(server->send(encode_frame("")));
  });
  ck_wait(a.transport->connected("b"));
  ck_wait(!a.downs.empty());
  ck_assert(a.downs[0].reason == DownReason::kTimedOut);
}
END_TEST

START_TEST(a_server_without_a_welcome_is_not_up) {
  const Kit kit;
  const Listening listening = listen_anywhere();
  const Identity host = kit.host("b");
  Node a(kit.host("a"));
  a.transport->set_peers({{"b", {"127.0.0.1:" + std::to_string(listening.port)}}});
  beside([&] {
    RawPeer::Options raw;
    raw.identity = &host;
    raw.server = true;
    RawPeer server(UniqueFd(accept(listening.fd.get(), nullptr, nullptr)), raw);
    ck_assert_int_eq(server.handshake(), 0);
    ck_assert(server.send(encode_frame("an answer to nothing")));
    ck_assert_uint_eq(server.receive(1).size(), 0);
  });
  ck_wait(!a.downs.empty());
  ck_assert(a.was_down(DownReason::kUntrusted, "not the welcome"));
  ck_assert(a.answers.empty());
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("bad-peers");
  TCase* const all = tcase_create("bad-peers");
  tcase_set_timeout(all, 60);
  tcase_add_test(all, another_ca);
  tcase_add_test(all, expired);
  tcase_add_test(all, another_cluster_or_host);
  tcase_add_test(all, strangers_hear_why);
  tcase_add_test(all, plaintext_and_garbage);
  tcase_add_test(all, half_a_handshake_is_cut_off_and_delays_nobody);
  tcase_add_test(all, a_server_that_only_listens);
  tcase_add_test(all, a_server_that_hangs_up_is_no_proof_of_its_death);
  tcase_add_test(all, broken_framing_after_a_good_handshake);
  tcase_add_test(all, a_peer_that_never_reads_is_cut_off_and_delays_nobody);
  tcase_add_test(all, a_peer_that_stops_reading_is_noticed_without_new_answers);
  tcase_add_test(all, a_silent_host_is_given_up);
  tcase_add_test(all, a_silent_server_is_given_up);
  tcase_add_test(all, a_server_without_a_welcome_is_not_up);
  suite_add_tcase(suite, all);
  return usblease::test::run_suite(suite);
}
