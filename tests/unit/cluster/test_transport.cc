// Hosts that behave: frames in order and in both directions, restarts, removal, rotation, what a dead process looks
// like.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <numeric>

#include "tests/unit/cluster/transport_kit.h"

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::test;

namespace {

bool is_up(const Node& node, const std::string& host) { return node.transport->connected(host); }

START_TEST(two_hosts_exchange_in_order) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  ck_assert(!a.transport->ask("b", "too early"));
  a.transport->set_peers({b.peer()});
  b.transport->set_peers({a.peer()});
  ck_wait(is_up(a, "b") && is_up(b, "a"));
  std::vector<std::string> sent;
  for (int i = 0; i < 500; ++i)
    sent.push_back(std::to_string(i) + std::string(static_cast<std::size_t>(i % 97) * 20, 'x'));
  for (const std::string& payload : sent) {
    ck_assert(a.transport->ask("b", payload));
    ck_assert(b.transport->ask("a", "r" + payload));
  }
  ck_wait(a.answers.size() == sent.size() && b.answers.size() == sent.size());
  ck_assert(b.requests == sent);
  ck_assert(a.answers == sent);
  for (std::size_t i = 0; i < sent.size(); ++i) ck_assert_text_eq(b.answers[i], "r" + sent[i]);
  ck_assert_uint_eq(a.accepted.size(), 1);
  ck_assert_uint_eq(b.accepted.size(), 1);
}
END_TEST

START_TEST(the_largest_frame_passes_and_a_larger_one_is_not_sent) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  a.transport->set_peers({b.peer()});
  ck_wait(is_up(a, "b"));
  std::string large(kFramePayloadMax, '\0');
  std::iota(large.begin(), large.end(), '\0');
  ck_assert(!a.transport->ask("b", large + "x"));
  ck_assert(!a.transport->ask("b", ""));
  ck_assert(a.transport->ask("b", large));
  ck_wait(a.answers.size() == 1);
  ck_assert(a.answers[0] == large);
  ck_assert(is_up(a, "b"));
}
END_TEST

START_TEST(a_queue_is_bounded_for_the_one_who_asks) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  a.transport->set_peers({b.peer()});
  ck_wait(is_up(a, "b"));
  // Nothing runs between these calls, so nobody reads.
  std::size_t taken = 0;
  while (taken < 64 && a.transport->ask("b", std::string(kFramePayloadMax, 'x'))) ++taken;
  ck_assert_uint_ge(taken, 3);
  ck_assert_uint_lt(taken, 16);
  b.on_request = [](AcceptedId /*id*/, const std::string& /*payload*/) {};
  ck_wait(b.requests.size() == taken);
  ck_assert(is_up(a, "b"));
}
END_TEST

START_TEST(three_hosts_and_pushes) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  Node c(kit.host("c"));
  for (Node* node : {&a, &b, &c}) {
    std::vector<Peer> peers;
    for (const Node* other : {&a, &b, &c}) {
      if (other != node) peers.push_back(other->peer());
    }
    node->transport->set_peers(peers);
  }
  ck_wait(a.accepted.size() == 2 && b.accepted.size() == 2 && c.accepted.size() == 2);
  ck_wait(is_up(a, "b") && is_up(a, "c") && is_up(b, "a") && is_up(b, "c") && is_up(c, "a") && is_up(c, "b"));
  for (int i = 0; i < 50; ++i) {
    for (const auto& [id, host] : a.accepted)
      ck_assert(a.transport->answer(id, "push " + host + " " + std::to_string(i)));
  }
  ck_wait(b.answers.size() == 50 && c.answers.size() == 50);
  ck_assert_text_eq(b.answers.front(), std::string("push b 0"));
  ck_assert_text_eq(c.answers.back(), std::string("push c 49"));
}
END_TEST

START_TEST(a_restarted_peer_is_found_again) {
  const Kit kit;
  const Identity identity = kit.host("b");
  Node a(kit.host("a"));
  auto b = std::make_unique<Node>(identity);
  TlsTransportOptions same_port = quick_options();
  same_port.listen = b->address();
  a.transport->set_peers({b->peer()});
  ck_wait(is_up(a, "b"));
  b.reset();
  ck_wait(a.was_down(DownReason::kRefused));
  ck_assert(a.downs.front().reason == DownReason::kClosed || a.downs.front().reason == DownReason::kReset);
  ck_assert(!a.transport->ask("b", "x"));
  b = std::make_unique<Node>(identity, same_port);
  ck_wait(is_up(a, "b"));
  ck_assert(a.transport->ask("b", "again"));
  ck_wait(a.answers.size() == 1);
}
END_TEST

// In a process of its own, so that it can be killed: writes its port, then serves until then.
pid_t start_host(const Identity& identity, std::uint16_t* port) {
  int ends[2];
  ck_assert_int_eq(pipe(ends), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    Node node(identity);
    const std::uint16_t own = node.transport->port();
    if (write(ends[1], &own, sizeof(own)) != sizeof(own)) _exit(1);
    for (;;) g_main_context_iteration(nullptr, TRUE);
  }
  ck_assert_int_eq(read(ends[0], port, sizeof(*port)), sizeof(*port));
  close(ends[0]);
  close(ends[1]);
  return pid;
}

START_TEST(a_killed_process_is_told_from_a_frozen_one) {
  const Kit kit;
  std::uint16_t killed_port = 0;
  std::uint16_t frozen_port = 0;
  const pid_t killed = start_host(kit.host("killed"), &killed_port);
  const pid_t frozen = start_host(kit.host("frozen"), &frozen_port);
  TlsTransportOptions options = quick_options();
  options.silent_ms = 400;
  options.handshake_ms = 400;
  Node a(kit.host("a"), options);
  a.transport->set_peers({{"killed", {"127.0.0.1:" + std::to_string(killed_port)}},
                          {"frozen", {"127.0.0.1:" + std::to_string(frozen_port)}}});
  ck_wait(is_up(a, "killed") && is_up(a, "frozen"));
  kill(killed, SIGKILL);
  ck_wait(a.downs.size() >= 2);
  ck_assert(a.downs[0].reason == DownReason::kReset);
  ck_assert(a.downs[1].reason == DownReason::kRefused);
  a.downs.clear();
  a.transport->set_peers({{"frozen", {"127.0.0.1:" + std::to_string(frozen_port)}}});
  kill(frozen, SIGSTOP);
  ck_wait(a.downs.size() >= 2);
  ck_assert(a.downs[0].reason == DownReason::kTimedOut);
  ck_assert(a.downs[1].reason == DownReason::kTimedOut);
  kill(frozen, SIGCONT);
  ck_wait(is_up(a, "frozen"));
  kill(frozen, SIGKILL);
  waitpid(killed, nullptr, 0);
  waitpid(frozen, nullptr, 0);
}
END_TEST

START_TEST(a_quiet_line_stays_up) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.silent_ms = 200;
  Node a(kit.host("a"), options);
  Node b(kit.host("b"), options);
  a.transport->set_peers({b.peer()});
  ck_wait(is_up(a, "b"));
  ck_assert(!wait_until([&] { return !a.downs.empty() || b.accepted.empty(); }, 1'500));
}
END_TEST

START_TEST(addresses_are_tried_in_order) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  const Listening nobody = listen_anywhere();
  a.transport->set_peers({{"b", {"127.0.0.1:1", "no-such-host.invalid:7471", "nonsense:port", b.address()}}});
  ck_wait(is_up(a, "b"));
  ck_assert(a.downs.empty());
  a.transport->set_peers({{"b", {"127.0.0.1:1"}}});
  ck_assert(is_up(a, "b"));
  a.transport->set_peers({});
  ck_wait(b.accepted.empty());
  ck_assert(a.downs.empty());
  a.transport->set_peers({{"b", {"127.0.0.1:1", "no-such-host.invalid:7471"}}});
  ck_wait(!a.downs.empty());
  ck_assert(a.downs[0].reason == DownReason::kUnresolved);
  a.downs.clear();
  a.transport->set_peers({{"b", {"127.0.0.1:1"}}});
  ck_wait(!a.downs.empty());
  ck_assert(a.downs[0].reason == DownReason::kRefused);
  ck_assert(a.downs[0].why.find("127.0.0.1:1") != std::string::npos);
}
END_TEST

START_TEST(drop_says_goodbye_and_delivers_what_was_queued) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  a.transport->set_peers({b.peer()});
  ck_wait(is_up(a, "b") && b.accepted.size() == 1);
  const AcceptedId id = b.accepted.begin()->first;
  for (int i = 0; i < 3; ++i) ck_assert(b.transport->answer(id, std::string(kFramePayloadMax, 'x')));
  b.transport->drop(id);
  ck_assert(!b.transport->answer(id, "late"));
  ck_assert_uint_eq(b.accepted.size(), 1);  // never inside the call
  ck_wait(!a.downs.empty());
  ck_assert_uint_eq(a.answers.size(), 3);
  ck_assert(a.downs[0].reason == DownReason::kClosed);
  ck_wait(b.story.size() >= 3 && b.story[1] == "gone a" && b.story[2] == "accepted a");
}
END_TEST

START_TEST(a_removed_host_is_told_and_kept_out) {
  const Kit kit;
  Node a(kit.host("a"));
  Node b(kit.host("b"));
  a.transport->set_peers({b.peer()});
  b.transport->set_peers({a.peer()});
  ck_wait(is_up(a, "b") && is_up(b, "a") && a.accepted.size() == 1 && b.accepted.size() == 1);
  b.transport->forbid("a");
  ck_wait(b.accepted.empty() && !is_up(b, "a"));
  ck_wait(a.was_down(DownReason::kForbidden, "not a member"));
  ck_wait(a.downs.size() >= 3 && b.was_down(DownReason::kUntrusted, "removed"));
  ck_assert(a.downs.back().reason == DownReason::kForbidden);
  ck_assert(b.accepted.empty());
  b.transport->permit("a");
  ck_wait(is_up(a, "b") && is_up(b, "a"));
}
END_TEST

START_TEST(a_second_connection_replaces_the_first) {
  const Kit kit;
  Node b(kit.host("b"));
  Node one(kit.host("a"));
  Node two(kit.host("a"));
  one.transport->set_peers({b.peer()});
  ck_wait(b.story.size() == 1);
  b.story.clear();
  two.transport->set_peers({b.peer()});
  ck_wait(b.story.size() >= 2);
  ck_assert_text_eq(b.story[0], std::string("gone a"));
  ck_assert_text_eq(b.story[1], std::string("accepted a"));
  ck_assert_uint_eq(b.accepted.size(), 1);
}
END_TEST

START_TEST(rotation_without_a_break) {
  const Kit old_kit;
  const Kit new_kit;
  Identity a_identity = old_kit.host("a");
  Node a(a_identity);
  Node b(old_kit.host("b"));
  a.transport->set_peers({b.peer()});
  ck_wait(is_up(a, "b"));
  const auto both = add_authority(a_identity.authorities, new_kit.authority().certificate);
  ck_assert_ok(both);
  // First both CAs are believed everywhere, then a host shows a certificate of the new one.
  Identity b_trusting = old_kit.host("b");
  b_trusting.authorities = *both;
  ck_assert_ok(b.transport->set_identity(b_trusting));
  Identity a_rotated = new_kit.host("a");
  a_rotated.authorities = *both;
  ck_assert_ok(a.transport->set_identity(a_rotated));
  ck_assert(is_up(a, "b"));
  b.transport->drop(b.accepted.begin()->first);
  ck_wait(!is_up(a, "b"));
  ck_wait(is_up(a, "b"));
  ck_assert_fails(a.transport->set_identity(new_kit.host("x")), ErrorCode::kRefused, "host a");
}
END_TEST

START_TEST(a_taken_port_is_named) {
  const Kit kit;
  const Node a(kit.host("a"));
  TlsTransportOptions options = quick_options();
  options.listen = a.address();
  ck_assert_fails(TlsTransport::open(kit.host("b"), options, {}), ErrorCode::kUnavailable, "another port");
  options.listen = "name.example:1";
  ck_assert_fails(TlsTransport::open(kit.host("b"), options, {}), ErrorCode::kBadInput, "IP address");
  options.listen = "192.0.2.1:0";
  ck_assert_fails(TlsTransport::open(kit.host("b"), options, {}), ErrorCode::kUnavailable, "192.0.2.1");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("transport");
  TCase* const all = tcase_create("transport");
  tcase_set_timeout(all, 60);
  tcase_add_test(all, two_hosts_exchange_in_order);
  tcase_add_test(all, the_largest_frame_passes_and_a_larger_one_is_not_sent);
  tcase_add_test(all, a_queue_is_bounded_for_the_one_who_asks);
  tcase_add_test(all, three_hosts_and_pushes);
  tcase_add_test(all, a_restarted_peer_is_found_again);
  tcase_add_test(all, a_killed_process_is_told_from_a_frozen_one);
  tcase_add_test(all, a_quiet_line_stays_up);
  tcase_add_test(all, addresses_are_tried_in_order);
  tcase_add_test(all, drop_says_goodbye_and_delivers_what_was_queued);
  tcase_add_test(all, a_removed_host_is_told_and_kept_out);
  tcase_add_test(all, a_second_connection_replaces_the_first);
  tcase_add_test(all, rotation_without_a_break);
  tcase_add_test(all, a_taken_port_is_named);
  suite_add_tcase(suite, all);
  return usblease::test::run_suite(suite);
}
