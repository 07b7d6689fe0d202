// The text of a join token: whole, mistyped, cut, of another version; and what the cluster checks of it.
#include "common/text.h"
#include "daemon/cluster/join_token.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using namespace usblease::cluster;

namespace {

JoinToken sample() {
  return {"c1", "h1", new_join_secret(), {"10.0.0.1:7471", "[fd00::1]:7471"}, std::string(64, 'a'), 1'800'000'000};
}

START_TEST(round_trip) {
  const JoinToken token = sample();
  const auto text = encode_join_token(token);
  ck_assert_ok(text);
  ck_assert_msg(text->find_first_of(" \n'\"$\\") == std::string::npos, "%s", text->c_str());
  const auto back = decode_join_token("  " + *text + "\n");
  ck_assert_ok(back);
  ck_assert(*back == token);
}
END_TEST

START_TEST(every_changed_character_is_noticed) {
  const auto text = encode_join_token(sample());
  ck_assert_ok(text);
  for (std::size_t i = 0; i < text->size(); ++i) {
    for (const char c : {'A', 'z', '_', '=', ' '}) {
      if ((*text)[i] == c) continue;
      std::string changed = *text;
      changed[i] = c;
      // A blank at the end is none of the text.
      if (c == ' ' && i + 1 == text->size()) changed += 'A';
      ck_assert_msg(!decode_join_token(changed), "%s", changed.c_str());
    }
  }
}
END_TEST

START_TEST(cut_and_foreign_texts) {
  const auto text = encode_join_token(sample());
  ck_assert_ok(text);
  for (std::size_t size = 0; size < text->size(); ++size) ck_assert(!decode_join_token(text->substr(0, size)));
  ck_assert_fails(decode_join_token(""), ErrorCode::kBadInput, "no join token");
  ck_assert_fails(decode_join_token("ssh-ed25519 AAAA"), ErrorCode::kBadInput, "usblease cluster add");
  ck_assert_fails(decode_join_token("usblease-join-2.AAAA"), ErrorCode::kBadInput, "version");
  ck_assert_fails(decode_join_token("usblease-join-1."), ErrorCode::kBadInput, "damaged");
  ck_assert_fails(decode_join_token(text->substr(0, text->size() - 3)), ErrorCode::kBadInput, "checksum");
  ck_assert_fails(decode_join_token(*text + "!"), ErrorCode::kBadInput, "characters");
  ck_assert_fails(decode_join_token("usblease-join-1." + std::string(kJoinTokenTextMax, 'A')), ErrorCode::kBadInput,
                  "longer");
}
END_TEST

START_TEST(impossible_fields_are_not_encoded) {
  const auto refused = [](void (*change)(JoinToken&), const char* part) {
    JoinToken token = sample();
    change(token);
    ck_assert_fails(encode_join_token(token), ErrorCode::kBadInput, part);
  };
  refused([](JoinToken& t) { t.cluster_id = ""; }, "cluster");
  refused([](JoinToken& t) { t.host_id = "a b"; }, "host");
  refused([](JoinToken& t) { t.secret = "00"; }, "secret");
  refused([](JoinToken& t) { t.secret[3] = 'x'; }, "secret");
  refused([](JoinToken& t) { t.authority_fingerprint = ""; }, "fingerprint");
  refused([](JoinToken& t) { t.expires_unix_s = 0; }, "end");
  refused([](JoinToken& t) { t.addresses.clear(); }, "addresses");
  refused([](JoinToken& t) { t.addresses.resize(kJoinTokenAddressesMax + 1, "a:1"); }, "addresses");
  refused([](JoinToken& t) { t.addresses[0] = "a b:1"; }, "impossible address");
  refused([](JoinToken& t) { t.addresses.assign(kJoinTokenAddressesMax, std::string(299, 'a')); }, "fewer addresses");
}
END_TEST

START_TEST(the_joining_host_checks_first) {
  const JoinToken token = sample();
  ck_assert_ok(check_join_token(token, "h1", token.expires_unix_s));
  ck_assert_fails(check_join_token(token, "h2", 1), ErrorCode::kRefused, "for host h1");
  ck_assert_fails(check_join_token(token, "h1", token.expires_unix_s + 1), ErrorCode::kTimedOut, "expired");
}
END_TEST

START_TEST(a_secret_is_good_for_one_join_in_time) {
  const JoinToken token = sample();
  Invitation invitation{"h1", hash_join_secret(token.secret), token.expires_unix_s, false};
  ck_assert(invitation.secret_hash.find(token.secret) == std::string::npos);
  ck_assert_ok(check_invitation(invitation, "h1", token.secret, token.expires_unix_s));
  ck_assert_fails(check_invitation(invitation, "h2", token.secret, 1), ErrorCode::kDenied, "host h2");
  ck_assert_fails(check_invitation(invitation, "h1", new_join_secret(), 1), ErrorCode::kDenied, "not given out");
  ck_assert_fails(check_invitation(invitation, "h1", "", 1), ErrorCode::kDenied, "not given out");
  ck_assert_fails(check_invitation({}, "", "", 0), ErrorCode::kDenied, "not given out");
  ck_assert_fails(check_invitation(invitation, "h1", token.secret, token.expires_unix_s + 1), ErrorCode::kTimedOut,
                  "expired");
  invitation.used = true;
  ck_assert_fails(check_invitation(invitation, "h1", token.secret, 1), ErrorCode::kRefused, "used");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("join-token");
  TCase* const all = tcase_create("join-token");
  tcase_add_test(all, round_trip);
  tcase_add_test(all, every_changed_character_is_noticed);
  tcase_add_test(all, cut_and_foreign_texts);
  tcase_add_test(all, impossible_fields_are_not_encoded);
  tcase_add_test(all, the_joining_host_checks_first);
  tcase_add_test(all, a_secret_is_good_for_one_join_in_time);
  suite_add_tcase(suite, all);
  return usblease::test::run_suite(suite);
}
