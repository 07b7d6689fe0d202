// What the coordinator must do later.
#include "daemon/lease/agenda.h"
#include "daemon/lease/timing.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

constexpr std::uint64_t kSecond = 1'000 * kNsPerMs;

struct Clocked : World {
  Agenda agenda;
  std::uint64_t now_ns = 500 * kSecond;

  void observe() {
    for (const Change& change : last.changes) agenda.observe(state(), change.key, now_ns);
  }
  void pass(std::uint64_t seconds) {
    now_ns += seconds * kSecond;
    now_unix_s += seconds;
  }
  // "grace-over dongle 1; …": what is due, not applied.
  std::string due() {
    std::string out;
    for (const auto& command : agenda.due(now_ns, now_unix_s)) {
      if (command.has_grace_over())
        out +=
            "grace-over " + command.grace_over().device() + " " + std::to_string(command.grace_over().token()) + "; ";
      if (command.has_until_over())
        out +=
            "until-over " + command.until_over().device() + " " + std::to_string(command.until_over().token()) + "; ";
      if (command.has_cancel_request()) out += "timed-out " + command.cancel_request().request_id() + "; ";
    }
    return out;
  }
  [[nodiscard]] std::string next() const {
    const auto next_ns = agenda.next_ns(now_ns, now_unix_s);
    if (!next_ns) return "never";
    return *next_ns <= now_ns ? "now" : std::to_string((*next_ns - now_ns) / kSecond) + " s";
  }
};

Clocked leased(const Ask& ask = {}) {
  Clocked c;
  c.host("h1");
  c.plug("dongle", "h1");
  c.acquire("r1", "web@h1", {"dongle"}, ask);
  c.observe();
  return c;
}

START_TEST(a_lease_without_an_end_needs_nothing) {
  Clocked c = leased();
  ASSERT_TEXT(c.next(), "never");
  ASSERT_TEXT(c.due(), "");
}
END_TEST

START_TEST(a_grace_runs_from_when_it_was_seen) {
  Clocked c = leased();
  c.revoke("dongle", 30'000);
  c.observe();
  ASSERT_TEXT(c.next(), "30 s");
  c.pass(29);
  ASSERT_TEXT(c.due(), "");
  c.pass(1);
  ASSERT_TEXT(c.due(), "grace-over dongle 1; ");
  // Not again at once, but again as long as nothing came of it.
  ASSERT_TEXT(c.due(), "");
  ASSERT_TEXT(c.next(), "1 s");
  c.pass(1);
  ASSERT_TEXT(c.due(), "grace-over dongle 1; ");
  c.grace_over("dongle", 1);
  c.observe();
  ASSERT_TEXT(c.next(), "never");
}
END_TEST

START_TEST(a_shorter_grace_counts_from_now_and_never_adds) {
  Clocked c = leased();
  c.revoke("dongle", 3'600'000);
  c.observe();
  c.pass(600);
  c.revoke("dongle", 60'000);
  c.observe();
  ASSERT_TEXT(c.next(), "60 s");
  c.pass(50);
  c.revoke("dongle", 59'000);
  c.observe();
  ASSERT_TEXT(c.next(), "10 s");
}
END_TEST

START_TEST(the_grace_of_the_next_lease_is_its_own) {
  Clocked c = leased();
  c.revoke("dongle", 30'000);
  c.observe();
  c.pass(29);
  c.fenced("dongle", 1, "h1");
  c.acquire("r2", "db@h1", {"dongle"});
  c.revoke("dongle", 30'000);
  c.observe();  // seen only now, in one step
  ASSERT_TEXT(c.next(), "30 s");
  c.pass(1);
  ASSERT_TEXT(c.due(), "");
}
END_TEST

START_TEST(until_follows_the_wall_clock) {
  Clocked c = leased({.duration_s = 600});
  // A wall clock may be set: look again at least every minute.
  ASSERT_TEXT(c.next(), "60 s");
  c.pass(570);
  ASSERT_TEXT(c.next(), "30 s");
  c.now_unix_s += 30;  // set forward
  ASSERT_TEXT(c.next(), "now");
  ASSERT_TEXT(c.due(), "until-over dongle 1; ");
  ASSERT_TEXT(c.due(), "");
  ASSERT_TEXT(c.next(), "1 s");
  c.now_unix_s -= 100;  // set back
  c.pass(1);
  ASSERT_TEXT(c.due(), "");
}
END_TEST

START_TEST(an_extended_lease_is_due_at_its_new_end) {
  Clocked c = leased({.duration_s = 10});
  c.pass(9);
  c.extend("dongle", 20);
  c.observe();
  ASSERT_TEXT(c.next(), "20 s");
  c.extend("dongle", 0);
  c.observe();
  ASSERT_TEXT(c.next(), "never");
}
END_TEST

START_TEST(until_ends_also_during_a_grace_and_not_during_a_fence) {
  Clocked c = leased({.duration_s = 10});
  c.revoke("dongle", 3'600'000);
  c.observe();
  c.pass(10);
  ASSERT_TEXT(c.due(), "until-over dongle 1; ");
  c.until_over("dongle", 1);
  c.observe();
  ASSERT_TEXT(c.next(), "never");
}
END_TEST

START_TEST(a_wait_ends_once_and_is_not_prolonged_by_being_seen_again) {
  Clocked c = leased();
  c.acquire("r2", "db@h1", {"dongle"}, {.wait_ms = 30'000});
  c.observe();
  c.pass(20);
  c.agenda.observe(c.state(), request_key("r2"), c.now_ns);
  ASSERT_TEXT(c.next(), "10 s");
  c.pass(10);
  ASSERT_TEXT(c.due(), "timed-out r2; ");
  ASSERT_TEXT(c.due(), "");
  ASSERT_TEXT(c.next(), "1 s");
  c.cancel("r2");
  c.observe();
  ASSERT_TEXT(c.next(), "never");
}
END_TEST

START_TEST(a_new_coordinator_builds_it_anew) {
  Clocked c = leased({.duration_s = 40});
  c.revoke("dongle", 30'000);
  c.acquire("r2", "db@h1", {"dongle"}, {.wait_ms = 20'000});
  c.agenda = Agenda();
  c.agenda.observe_all(c.state(), c.now_ns);
  ASSERT_TEXT(c.next(), "20 s");
  c.pass(40);
  ASSERT_TEXT(c.due(), "grace-over dongle 1; until-over dongle 1; timed-out r2; ");
}
END_TEST

START_TEST(a_reload_begins_nothing_anew) {
  Clocked c = leased({.duration_s = 40});
  c.revoke("dongle", 30'000);
  c.observe();
  c.acquire("r2", "db@h1", {"dongle"}, {.wait_ms = 20'000});
  c.observe();
  c.pass(15);
  c.agenda.observe_all(c.state(), c.now_ns);
  ASSERT_TEXT(c.next(), "5 s");
  c.pass(5);
  ASSERT_TEXT(c.due(), "timed-out r2; ");
  // The store, read again, may have gone on without what is known here.
  c.cancel("r2");
  c.agenda.observe_all(c.state(), c.now_ns);
  ASSERT_TEXT(c.next(), "10 s");
  c.pass(10);
  ASSERT_TEXT(c.due(), "grace-over dongle 1; ");
  c.agenda.observe_all(lease::make_state("test"), c.now_ns);
  ASSERT_TEXT(c.next(), "never");
}
END_TEST

}  // namespace

int main() {
  return run_suite("agenda", {a_lease_without_an_end_needs_nothing, a_grace_runs_from_when_it_was_seen,
                              a_shorter_grace_counts_from_now_and_never_adds, the_grace_of_the_next_lease_is_its_own,
                              until_follows_the_wall_clock, an_extended_lease_is_due_at_its_new_end,
                              until_ends_also_during_a_grace_and_not_during_a_fence,
                              a_wait_ends_once_and_is_not_prolonged_by_being_seen_again,
                              a_new_coordinator_builds_it_anew, a_reload_begins_nothing_anew});
}
