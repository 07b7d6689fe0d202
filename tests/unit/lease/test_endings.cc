// How a lease ends: release, revocation, the end that was asked for, fence confirmation.
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

// web@h2 has the dongle at h1 under token 1.
World leased(const Ask& ask = {}) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.acquire("r1", "web@h2", {"dongle"}, ask);
  w.told();
  return w;
}

START_TEST(a_released_device_is_free_only_after_the_fence) {
  World w = leased();
  ASSERT_QUEUED(w.acquire("r2", "db@h1", {"dongle"}));
  ASSERT_OK(w.release("web@h2"));
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ASSERT_OK(w.release("web@h2"));
  ck_assert(w.last.changes.empty());
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "db@h1 2 granted");
}
END_TEST

START_TEST(release_gives_back_exactly_one_start) {
  World w = leased();
  w.release("web@h2", {}, 2);  // another start of the same guest
  ck_assert(w.last.changes.empty());
  w.release("web@h1");  // the same guest on another host: refused there, or the source of a migration
  ck_assert(w.last.changes.empty());
  w.release("web@h2", {}, 1, 2);  // another boot
  ck_assert(w.last.changes.empty());
  w.release("db@h2");
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
}
END_TEST

START_TEST(a_late_release_of_a_refused_start_leaves_the_running_one_alone) {
  World w = leased();
  ASSERT_REFUSED(w.acquire("r2", "web@h1", {"dongle"}, {.wait_ms = 0, .start = 2}));
  w.release("web@h1", {}, 2);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
}
END_TEST

START_TEST(release_of_some_devices_keeps_the_others) {
  World w = leased();
  w.plug("phone", "h1");
  w.plug("probe", "h1");
  w.acquire("r2", "web@h2", {"phone", "probe"});
  w.release("web@h2", {"phone", "unknown"});
  ASSERT_TEXT(w.holder("phone"), "web@h2 1 fencing");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  ASSERT_TEXT(w.holder("probe"), "web@h2 1 granted");
  // A request is dropped when all that it names is given back.
  w.acquire("r3", "web@h2", {"phone", "probe"});
  w.acquire("r4", "web@h2", {"phone"});
  w.release("web@h2", {"phone"});
  ASSERT_TEXT(w.settled(), "r4 REFUSED");
  w.release("web@h2");
  ASSERT_TEXT(w.settled(), "r3 REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
}
END_TEST

START_TEST(release_of_one_request_keeps_what_others_got) {
  World w = leased();
  w.plug("phone", "h1");
  w.acquire("r2", "web@h2", {"phone"});
  w.acquire("r3", "db@h1", {"phone", "dongle"});
  command::Command command;
  *command.mutable_release()->mutable_start() = start_of("web", "h2");
  command.mutable_release()->set_request_id("r2");
  w.apply(command);
  ASSERT_TEXT(w.holder("phone"), "web@h2 1 fencing");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.apply(command);
  ck_assert(w.last.changes.empty());
  command.mutable_release()->set_request_id("r3");  // of another start
  w.apply(command);
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.queue("dongle"), "r3");
}
END_TEST

START_TEST(a_released_request_lets_the_next_one_go) {
  World w = leased();
  w.plug("phone", "h1");
  w.acquire("set", "a@h1", {"dongle", "phone"});
  w.acquire("next", "b@h1", {"phone"});
  w.release("a@h1");
  ASSERT_TEXT(w.settled(), "set REFUSED; next OK phone 1");
}
END_TEST

START_TEST(revoke_with_a_grace_tells_first_and_fences_later) {
  World w = leased();
  ASSERT_OK(w.revoke("dongle", 30'000));
  ck_assert_uint_eq(w.last.reply.token(), 1);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 revoking");
  ck_assert_uint_eq(w.lease("dongle").grace_ms(), 30'000);
  ASSERT_TEXT(w.lease("dongle").end_reason(), "needed elsewhere");
  ASSERT_TEXT(w.lease("dongle").ended_by(), "anna");
  w.grace_over("dongle", 1);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ASSERT_TEXT(w.lease("dongle").ended_by(), "anna");
  ASSERT_TEXT(w.told(), "revoking dongle web@h2 token 1\nfencing dongle web@h2 token 1\n");
}
END_TEST

START_TEST(revoke_without_a_grace_fences_at_once) {
  World w = leased();
  ASSERT_OK(w.revoke("dongle", 0));
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ASSERT_OK(w.revoke("dongle", 0));
  ck_assert(w.last.changes.empty());
  ck_assert_uint_eq(w.last.reply.token(), 1);
}
END_TEST

START_TEST(a_grace_is_only_ever_shortened) {
  World w = leased();
  w.revoke("dongle", 30'000);
  w.revoke("dongle", 60'000);
  ck_assert(w.last.changes.empty());
  w.revoke("dongle", 30'000);
  ck_assert(w.last.changes.empty());
  w.revoke("dongle", 10'000);
  ck_assert_uint_eq(w.lease("dongle").grace_ms(), 10'000);
  w.revoke("dongle", 0);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
}
END_TEST

START_TEST(revoke_of_another_token_or_of_nothing_is_refused) {
  World w = leased();
  ASSERT_REFUSED(w.revoke("dongle", 0, 2));
  ASSERT_OK(w.revoke("dongle", 5'000, 1));
  ck_assert_int_eq(w.revoke("phone", 0), command::CODE_NOT_FOUND);
  w.plug("phone", "h1");
  ck_assert_int_eq(w.revoke("phone", 0), command::CODE_NOT_FOUND);
}
END_TEST

START_TEST(grace_over_of_an_earlier_lease_does_nothing) {
  World w = leased();
  w.grace_over("dongle", 1);  // nothing was revoked
  ck_assert(w.last.changes.empty());
  w.revoke("dongle", 0);
  w.fenced("dongle", 1, "h1");
  w.acquire("r2", "db@h1", {"dongle"});
  w.revoke("dongle", 30'000);
  w.grace_over("dongle", 1);
  ck_assert(w.last.changes.empty());
  w.grace_over("unknown", 1);
  ASSERT_TEXT(w.holder("dongle"), "db@h1 2 revoking");
}
END_TEST

START_TEST(until_ends_a_lease_at_its_time_only) {
  World w = leased({.duration_s = 60});
  ck_assert_uint_eq(w.lease("dongle").until_unix_s(), w.now_unix_s + 60);
  w.now_unix_s += 59;
  w.until_over("dongle", 1);
  ck_assert(w.last.changes.empty());
  w.now_unix_s += 1;
  w.until_over("dongle", 2);
  ck_assert(w.last.changes.empty());
  w.until_over("dongle", 1);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
}
END_TEST

START_TEST(until_also_ends_what_is_being_revoked) {
  World w = leased({.duration_s = 60});
  w.revoke("dongle", 3'600'000);
  w.now_unix_s += 60;
  w.until_over("dongle", 1);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ASSERT_TEXT(w.lease("dongle").ended_by(), "anna");
}
END_TEST

START_TEST(an_extended_lease_outlives_its_first_until) {
  World w = leased({.duration_s = 60});
  w.now_unix_s += 50;
  ASSERT_OK(w.extend("dongle", 60));
  ck_assert_uint_eq(w.last.reply.token(), 1);
  w.now_unix_s += 10;
  w.until_over("dongle", 1);
  ck_assert(w.last.changes.empty());
  ASSERT_OK(w.extend("dongle", 0, 1));
  ck_assert_uint_eq(w.lease("dongle").until_unix_s(), 0);
  w.until_over("dongle", 1);
  ck_assert(w.last.changes.empty());
}
END_TEST

START_TEST(extend_keeps_to_the_policy_and_to_live_leases) {
  World w = leased();
  record::Policy policy;
  policy.set_until_max_s(100);
  w.plug("dongle", "h1", {.policy = policy});
  ASSERT_REFUSED(w.extend("dongle", 101));
  ASSERT_REFUSED(w.extend("dongle", 0));
  ASSERT_OK(w.extend("dongle", 100));
  ck_assert_int_eq(w.extend("dongle", 10, 7), command::CODE_NOT_FOUND);
  ck_assert_int_eq(w.extend("phone", 10), command::CODE_NOT_FOUND);
  w.revoke("dongle", 5'000);
  ASSERT_REFUSED(w.extend("dongle", 10));
  w.revoke("dongle", 0);
  w.fenced("dongle", 1, "h1");
  ck_assert_int_eq(w.extend("dongle", 10), command::CODE_NOT_FOUND);
}
END_TEST

START_TEST(a_confirmation_must_be_about_the_lease) {
  World w = leased();
  w.revoke("dongle", 0);
  const auto before = entries_of(w.state());
  ck_assert_int_eq(w.fenced("phone", 1, "h1"), command::CODE_NOT_FOUND);
  ASSERT_REFUSED(w.fenced("dongle", 2, "h1"));        // never granted
  ASSERT_REFUSED(w.fenced("dongle", 1, "h2"));        // another home
  ASSERT_REFUSED(w.fenced("dongle", 1, "h1", 2));     // another instance
  ASSERT_REFUSED(w.fenced("dongle", 1, "h1", 1, 2));  // another boot
  ck_assert(entries_of(w.state()) == before);
  ASSERT_OK(w.fenced("dongle", 1, "h1"));
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(a_repeated_confirmation_does_not_end_the_next_lease) {
  World w = leased();
  w.revoke("dongle", 0);
  w.fenced("dongle", 1, "h1");
  w.acquire("r2", "db@h1", {"dongle"});
  ASSERT_OK(w.fenced("dongle", 1, "h1"));
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.holder("dongle"), "db@h1 2 granted");
}
END_TEST

START_TEST(a_home_may_confirm_unasked) {
  World w = leased();
  w.acquire("r2", "db@h1", {"dongle"});
  ASSERT_OK(w.fenced("dongle", 1, "h1"));
  ASSERT_TEXT(w.settled(), "r2 OK dongle 2");
}
END_TEST

START_TEST(events_are_bounded_and_keep_their_numbers) {
  World w = leased();
  std::uint64_t last = 0;
  for (std::size_t i = 0; i < kEventsMax + 10; ++i) {
    const bool full = w.state().events.size() == kEventsMax;
    w.extend("dongle", i + 1);
    last = w.last.events.at(0).seq();
    // The device, the new event, and the oldest one, which goes.
    ck_assert_uint_eq(w.last.changes.size(), full ? 3 : 2);
  }
  ck_assert_uint_eq(w.state().events.size(), kEventsMax);
  ck_assert_uint_eq(w.state().events.rbegin()->first, last);
  ck_assert_uint_eq(w.state().events.begin()->first, last + 1 - kEventsMax);
  ck_assert_uint_eq(w.state().next_seq(), last + 1);
}
END_TEST

}  // namespace

int main() {
  return run_suite("endings",
                   {a_released_device_is_free_only_after_the_fence, release_gives_back_exactly_one_start,
                    a_late_release_of_a_refused_start_leaves_the_running_one_alone,
                    release_of_some_devices_keeps_the_others, release_of_one_request_keeps_what_others_got,
                    a_released_request_lets_the_next_one_go, revoke_with_a_grace_tells_first_and_fences_later,
                    revoke_without_a_grace_fences_at_once, a_grace_is_only_ever_shortened,
                    revoke_of_another_token_or_of_nothing_is_refused, grace_over_of_an_earlier_lease_does_nothing,
                    until_ends_a_lease_at_its_time_only, until_also_ends_what_is_being_revoked,
                    an_extended_lease_outlives_its_first_until, extend_keeps_to_the_policy_and_to_live_leases,
                    a_confirmation_must_be_about_the_lease, a_repeated_confirmation_does_not_end_the_next_lease,
                    a_home_may_confirm_unasked, events_are_bounded_and_keep_their_numbers});
}
