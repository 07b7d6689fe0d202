// How a host without a certificate asks to join, and what somebody on that way cannot do.
#include "daemon/cluster/join_client.h"
#include "tests/unit/cluster/transport_kit.h"

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::test;

namespace {

JoinToken token_of(const Kit& kit, std::vector<std::string> addresses) {
  const auto print = fingerprint(kit.authority().certificate);
  ck_assert_ok(print);
  return {"c1", "new", new_join_secret(), std::move(addresses), *print, wall_clock_unix_s() + 600};
}

Result<JoinAnswer> join(const JoinToken& token, std::string payload, std::uint32_t timeout_ms = 10'000) {
  std::optional<Result<JoinAnswer>> result;
  const JoinClient client(token, std::move(payload), timeout_ms,
                          [&](Result<JoinAnswer> done) { result = std::move(done); });
  ck_wait(result.has_value());
  return std::move(*result);
}

// What a member does, with the certificate that a join is for.
std::string sign(const Kit& kit, Invitation& invitation, const std::string& secret, const std::string& request) {
  if (!check_invitation(invitation, "new", secret, wall_clock_unix_s())) return "refused";
  const auto certificate = sign_host_request(kit.authority(), request, {"c1", "new", {}});
  invitation.used = certificate.has_value();
  return certificate ? *certificate : "refused: " + certificate.error().message;
}

START_TEST(a_host_joins_and_is_let_in) {
  const Kit kit;
  Node member(kit.host("m"));
  const JoinToken token = token_of(kit, {"127.0.0.1:1", member.address()});
  Invitation invitation{"new", hash_join_secret(token.secret), token.expires_unix_s, false};
  member.on_join = [&](const std::string& request, const std::function<void(std::string)>& answer) {
    answer(sign(kit, invitation, token.secret, request));
  };
  const auto request = make_host_request("new");
  ck_assert_ok(request);
  const auto answer = join(token, request->request);
  ck_assert_ok(answer);
  ck_assert_text_eq(answer->authority, kit.authority().certificate);
  ck_assert_text_eq(answer->member, std::string("m"));
  const auto identity = make_identity(answer->authority, answer->payload, request->key);
  ck_assert_ok(identity);
  Node joined(*identity);
  joined.transport->set_peers({member.peer()});
  ck_wait(joined.transport->connected("m") && member.accepted.size() == 1);
  // The token was good for one.
  const auto again = join(token, request->request);
  ck_assert_ok(again);
  ck_assert_text_eq(again->payload, std::string("refused"));
  ck_assert_uint_eq(member.joins, 2);
}
END_TEST

START_TEST(a_late_answer) {
  const Kit kit;
  Node member(kit.host("m"));
  std::function<void(std::string)> later;
  member.on_join = [&](const std::string& /*request*/, std::function<void(std::string)> answer) {
    later = std::move(answer);
  };
  std::optional<Result<JoinAnswer>> result;
  const JoinClient client(token_of(kit, {member.address()}), "please", 10'000,
                          [&](Result<JoinAnswer> done) { result = std::move(done); });
  ck_wait(static_cast<bool>(later));
  ck_assert(!result);
  later(std::string(kFramePayloadMax / 2, 'x'));
  later("twice");
  ck_wait(result.has_value());
  ck_assert_ok(*result);
  ck_assert_uint_eq((*result)->payload.size(), kFramePayloadMax / 2);
}
END_TEST

// ck_assert_fails evaluates its argument several times; this asks once.
void check_fails(const JoinToken& token, const std::string& payload, std::uint32_t timeout_ms, ErrorCode code,
                 const char* part) {
  const auto result = join(token, payload, timeout_ms);
  ck_assert_fails(result, code, part);
}

START_TEST(the_joining_host_knows_whom_it_asks) {
  const Kit kit;
  const Kit impostor;
  Node member(impostor.host("m"));
  check_fails(token_of(kit, {member.address()}), "please", 10'000, ErrorCode::kDenied, "fingerprint");
  JoinToken other_cluster = token_of(impostor, {member.address()});
  other_cluster.cluster_id = "c9";
  check_fails(other_cluster, "please", 10'000, ErrorCode::kDenied, "another cluster");
  ck_assert_uint_eq(member.joins, 0);
  check_fails(token_of(kit, {"127.0.0.1:1"}), "please", 10'000, ErrorCode::kUnavailable, "127.0.0.1:1");
  check_fails(token_of(kit, {"127.0.0.1:1"}), std::string(kJoinPayloadMax + 1, 'x'), 10'000, ErrorCode::kBadInput,
              "bytes");
  // Nobody answers the request.
  Node mute(kit.host("m"));
  check_fails(token_of(kit, {mute.address()}), "please", 1'000, ErrorCode::kTimedOut, "within 1000 ms");
  ck_assert_uint_eq(mute.joins, 1);
}
END_TEST

START_TEST(who_joins_can_only_join) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.handshake_ms = 700;
  Node member(kit.host("m"), options);
  member.on_join = [](const std::string& /*request*/, const std::function<void(std::string)>& answer) {
    answer("answer");
  };
  const Identity host = kit.host("a");
  const auto talk = [&](const std::string& bytes, const Identity* identity) {
    RawPeer::Options raw;
    raw.alpn = "usblease-join/1";
    raw.identity = identity;
    RawPeer peer(connect_to(member.transport->port()), raw);
    ck_assert_int_eq(peer.handshake(), 0);
    ck_assert(peer.send(bytes));
    return peer.receive(1'000);
  };
  const std::string welcome = encode_frame("");
  beside([&] {
    ck_assert_text_eq(talk(encode_frame("one"), nullptr), welcome + encode_frame("answer"));
    // Only the first counts, and a certificate makes no difference.
    ck_assert_text_eq(talk(encode_frame("one") + encode_frame("two"), &host), welcome + encode_frame("answer"));
    ck_assert_text_eq(talk(encode_frame(std::string(kJoinPayloadMax + 1, 'x')), nullptr), welcome);
    ck_assert_text_eq(talk(std::string(64, '\xff'), nullptr), welcome);
    ck_assert_text_eq(talk("", nullptr), welcome);  // says nothing: cut off after handshake_ms
  });
  ck_assert_uint_eq(member.joins, 2);
  ck_assert(member.story.empty());
  ck_assert(member.requests.empty());
}
END_TEST

START_TEST(joins_that_wait_are_few) {
  const Kit kit;
  TlsTransportOptions options = quick_options();
  options.joining_max = 3;
  options.join_ms = 500;
  Node member(kit.host("m"), options);
  member.on_join = [](const std::string& /*request*/, const std::function<void(std::string)>& /*never*/) {};
  beside([&] {
    std::vector<std::unique_ptr<RawPeer>> peers;
    for (int i = 0; i < 6; ++i) {
      RawPeer::Options raw;
      raw.alpn = "usblease-join/1";
      peers.push_back(std::make_unique<RawPeer>(connect_to(member.transport->port()), raw));
      ck_assert_int_eq(peers.back()->handshake(), 0);
      peers.back()->send(encode_frame("please"));
    }
    // Each ends, refused at once or after join_ms.
    for (const auto& peer : peers) ck_assert_uint_lt(peer->receive(100).size(), 100);
  });
  ck_assert_uint_eq(member.joins, 3);
}
END_TEST

START_TEST(an_asker_who_left_and_a_transport_that_ended) {
  const Kit kit;
  auto member = std::make_unique<Node>(kit.host("m"));
  std::vector<std::function<void(std::string)>> later;
  member->on_join = [&](const std::string& /*request*/, std::function<void(std::string)> answer) {
    later.push_back(std::move(answer));
  };
  const JoinToken token = token_of(kit, {member->address()});
  auto client = std::make_unique<JoinClient>(token, "please", 10'000, [](const auto& /*never*/) { ck_abort(); });
  ck_wait(later.size() == 1);
  client.reset();
  later[0]("too late");
  std::optional<Result<JoinAnswer>> result;
  const JoinClient second(token, "please", 10'000, [&](Result<JoinAnswer> done) { result = std::move(done); });
  ck_wait(later.size() == 2);
  member.reset();
  later[1]("too late");
  ck_wait(result.has_value());
  ck_assert_fails(*result, ErrorCode::kUnavailable, "no member");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("join");
  TCase* const all = tcase_create("join");
  tcase_set_timeout(all, 60);
  tcase_add_test(all, a_host_joins_and_is_let_in);
  tcase_add_test(all, a_late_answer);
  tcase_add_test(all, the_joining_host_knows_whom_it_asks);
  tcase_add_test(all, who_joins_can_only_join);
  tcase_add_test(all, joins_that_wait_are_few);
  tcase_add_test(all, an_asker_who_left_and_a_transport_that_ended);
  suite_add_tcase(suite, all);
  return usblease::test::run_suite(suite);
}
