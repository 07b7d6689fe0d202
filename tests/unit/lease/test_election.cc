// When a candidate may stand, and how long it waits before.
#include "daemon/lease/election.h"
#include "daemon/lease/timing.h"
#include "tests/unit/lease/runner.h"

namespace {

using namespace usblease;
using namespace usblease::lease;

Holder holder(const std::string& host, std::uint64_t term, std::uint64_t revision) {
  return {host, "nonce-" + host, term, revision};
}

peer::GoneVote gone_vote(const std::string& host, std::uint64_t term, bool gone = true) {
  peer::GoneVote vote;
  vote.set_host_id(host);
  vote.set_term(term);
  vote.set_gone(gone);
  return vote;
}

ElectionRules rules_of_a() {
  ElectionRules rules("a", "nonce-a");
  rules.set_candidates({"a", "b", "c"});
  return rules;
}

ElectionRules rules_of_a_under_b() {
  ElectionRules rules = rules_of_a();
  rules.key_seen(holder("b", 4, 40), 40);
  return rules;
}

START_TEST(nobody_stands_before_it_has_looked) {
  const ElectionRules rules = rules_of_a();
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(a_key_that_is_gone_is_free_to_all) {
  ElectionRules rules = rules_of_a();
  rules.key_seen(std::nullopt, 9);
  ck_assert(rules.cause() == StandCause::kKeyGone);
  rules.key_seen(holder("b", 4, 40), 40);
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(who_is_no_candidate_never_stands) {
  ElectionRules rules("p", "nonce-p");
  rules.set_candidates({"a", "b", "c"});
  rules.key_seen(std::nullopt, 9);
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(news_that_are_old_change_nothing) {
  ElectionRules rules = rules_of_a_under_b();
  rules.key_seen(std::nullopt, 39);
  ck_assert(!rules.cause());
  ck_assert_str_eq(rules.holder()->host_id.c_str(), "b");
}
END_TEST

START_TEST(the_own_key_gives_no_cause_and_an_earlier_process_does) {
  ElectionRules rules = rules_of_a();
  rules.key_seen(holder("a", 4, 40), 40);
  ck_assert(!rules.cause());
  rules.key_seen(Holder{"a", "another", 5, 50}, 50);
  ck_assert(rules.cause() == StandCause::kOwnFormer);
}
END_TEST

START_TEST(a_majority_must_have_seen_it_this_host_among_them) {
  ElectionRules rules = rules_of_a_under_b();
  rules.vote("c", gone_vote("b", 4));
  ck_assert(!rules.cause());  // one of three
  const auto told = rules.connection("b", true);
  ck_assert(told && told->host_id() == "b" && told->term() == 4 && told->gone());
  ck_assert(rules.cause() == StandCause::kVotedGone);
  // It was told once; and is taken back.
  ck_assert(!rules.connection("b", true));
  const auto back = rules.connection("b", false);
  ck_assert(back && !back->gone());
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(others_alone_are_not_believed) {
  ElectionRules rules("a", "nonce-a");
  rules.set_candidates({"a", "b", "c", "d", "e"});
  rules.key_seen(holder("b", 4, 40), 40);
  for (const char* from : {"c", "d", "e"}) rules.vote(from, gone_vote("b", 4));
  ck_assert(!rules.cause());
  rules.connection("b", true);
  ck_assert(rules.cause() == StandCause::kVotedGone);
  rules.vote("d", gone_vote("b", 4, false));
  ck_assert(rules.cause() == StandCause::kVotedGone);  // c, e and a
  rules.vote("e", gone_vote("b", 4, false));
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(votes_count_for_their_term_and_from_candidates_only) {
  ElectionRules rules = rules_of_a_under_b();
  rules.connection("b", true);
  rules.vote("p", gone_vote("b", 4));
  rules.vote("b", gone_vote("b", 4));  // the holder itself
  rules.vote("a", gone_vote("b", 4));  // this host: only what it saw counts
  rules.vote("c", gone_vote("b", 3));
  ck_assert(!rules.cause());
  // A taking back of another term says nothing of this one.
  rules.vote("c", gone_vote("b", 4));
  rules.vote("c", gone_vote("b", 3, false));
  ck_assert(rules.cause() == StandCause::kVotedGone);
  // Who is no candidate any more has no vote.
  rules.set_candidates({"a", "b", "d"});
  ck_assert(!rules.cause());
}
END_TEST

// What was seen of one coordinator is never held against the next: so two candidates cannot take the key in turn.
START_TEST(a_new_holder_begins_without_votes) {
  ElectionRules rules = rules_of_a_under_b();
  rules.connection("c", true);  // not the holder: says nothing
  rules.connection("b", true);
  rules.vote("c", gone_vote("b", 4));
  rules.key_seen(holder("c", 5, 50), 50);
  ck_assert(!rules.cause());
  rules.vote("b", gone_vote("c", 5));
  ck_assert(!rules.cause());
  // The same host again, under another term, is another holder too.
  rules.key_seen(holder("b", 6, 60), 60);
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(of_two_candidates_none_votes_the_other_away) {
  ElectionRules rules("a", "nonce-a");
  rules.set_candidates({"a", "b"});
  rules.key_seen(holder("b", 4, 40), 40);
  rules.connection("b", true);
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(only_the_coordinator_of_this_term_hands_over) {
  ElectionRules rules = rules_of_a_under_b();
  ck_assert(!rules.told_to_stand("c", 4));
  ck_assert(!rules.told_to_stand("b", 3));
  ck_assert(!rules.cause());
  ck_assert(rules.told_to_stand("b", 4));
  ck_assert(rules.cause() == StandCause::kTransfer);
  rules.key_seen(holder("c", 5, 50), 50);
  ck_assert(!rules.cause());
}
END_TEST

START_TEST(waits_are_bounded_and_only_among_rivals) {
  for (const StandCause cause :
       {StandCause::kKeyGone, StandCause::kOwnFormer, StandCause::kVotedGone, StandCause::kTransfer})
    ck_assert_uint_eq(stand_wait_ns(cause, 1, UINT64_MAX), 0);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kOwnFormer, 3, UINT64_MAX), 0);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kTransfer, 3, UINT64_MAX), 0);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kKeyGone, 3, 300 * kNsPerMs), 300 * kNsPerMs);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kKeyGone, 3, 300 * kNsPerMs + 1), 0);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kVotedGone, 3, 100 * kNsPerMs), 100 * kNsPerMs);
  ck_assert_uint_eq(stand_wait_ns(StandCause::kVotedGone, 3, 100 * kNsPerMs + 1), 0);
}
END_TEST

}  // namespace

int main() {
  return run_suite("election", {nobody_stands_before_it_has_looked, a_key_that_is_gone_is_free_to_all,
                                who_is_no_candidate_never_stands, news_that_are_old_change_nothing,
                                the_own_key_gives_no_cause_and_an_earlier_process_does,
                                a_majority_must_have_seen_it_this_host_among_them, others_alone_are_not_believed,
                                votes_count_for_their_term_and_from_candidates_only, a_new_holder_begins_without_votes,
                                of_two_candidates_none_votes_the_other_away,
                                only_the_coordinator_of_this_term_hands_over, waits_are_bounded_and_only_among_rivals});
}
