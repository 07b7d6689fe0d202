// Named locks at the host of their holder: what its client is told, and what the coordinator is.
#include "daemon/host/locks.h"
#include "tests/unit/host/agent_fixture.h"

namespace usblease::host {
namespace {

using test::AgentFixture;
using test::run_posted;
using test::run_until;

constexpr const char* kLock = "lock/fw";

// One client of the lock, and all that it was told.
struct Told {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> held;  // token, deadline
  int waiting = 0;
  std::vector<std::pair<command::Code, std::string>> ended;

  LockClient client() {
    LockClient out;
    out.waiting = [this](const command::Reply& /*reply*/) { ++waiting; };
    out.held = [this](std::uint64_t token, std::uint64_t deadline_ns) { held.emplace_back(token, deadline_ns); };
    out.ended = [this](command::Code code, const std::string& message) { ended.emplace_back(code, message); };
    return out;
  }
};

command::Acquire request(const std::string& id, const std::string& nonce, std::uint32_t wait_ms = 60'000,
                         const std::string& host = "here") {
  command::Acquire acquire;
  acquire.set_request_id(id);
  acquire.mutable_start()->set_guest_uuid("00000000-0000-0000-0000-000000000000");
  acquire.mutable_start()->set_nonce(nonce);
  acquire.mutable_start()->set_host_id(host);
  acquire.mutable_start()->set_boot_id(host == "here" ? test::kBootId : test::kOtherBootId);
  acquire.mutable_start()->set_domain_id(-1);
  acquire.set_guest_name("flash[1]");
  acquire.add_devices(kLock);
  acquire.set_wait_ms(wait_ms);
  return acquire;
}

constexpr const char* kOne = "00000000000000a1";
constexpr const char* kTwo = "00000000000000a2";

std::uint64_t hold(AgentFixture& f, Told& told, const std::string& id = "r1", const std::string& nonce = kOne) {
  const std::uint64_t number = f.agent->locks().lock(request(id, nonce), told.client());
  ck_assert(run_until([&] { return !told.held.empty(); }));
  return number;
}

bool unlocks(AgentFixture& f, const std::string& id) {
  std::optional<bool> done;
  f.agent->locks().unlock(id, [&](const Result<void>& result) { done = result.has_value(); });
  ck_assert(run_until([&] { return done.has_value(); }));
  return *done;
}

START_TEST(its_deadline_moves_on_until_it_is_given_back) {
  AgentFixture f;
  f.start();
  Told told;
  const std::uint64_t before_ns = boottime_now_ns();
  hold(f, told);
  ck_assert_uint_eq(told.held[0].first, 1);
  // Not later than a session that was renewed just now allows.
  ck_assert_uint_gt(told.held[0].second, before_ns);
  ck_assert_uint_le(told.held[0].second, boottime_now_ns() + 10'000'000'000);
  // What the host has to remember is on disk before the client knows its token.
  ck_assert_uint_eq(f.home_file->floor(kLock).armed(), 1);
  ck_assert(run_until([&] { return told.held.size() >= 2; }));
  ck_assert_uint_gt(told.held[1].second, told.held[0].second);
  ck_assert(f.coordinator.phase(kLock) == "granted");
  ck_assert(unlocks(f, "r1"));
  ck_assert(f.coordinator.phase(kLock) == "free");
  ck_assert_uint_eq(f.home_file->floor(kLock).fenced(), 1);
  ck_assert_uint_eq(told.ended.size(), 1);
  ck_assert(told.ended[0].first == command::CODE_OK);
}
END_TEST

START_TEST(who_waits_gets_it_when_all_has_ended) {
  AgentFixture f;
  f.start();
  Told one;
  Told two;
  hold(f, one);
  f.agent->locks().lock(request("r2", kTwo), two.client());
  ck_assert(run_until([&] { return two.waiting > 0; }));
  ck_assert(two.held.empty());
  ck_assert(unlocks(f, "r1"));
  ck_assert(run_until([&] { return !two.held.empty(); }));
  ck_assert_uint_eq(two.held[0].first, 2);
}
END_TEST

START_TEST(a_refusal_says_who_has_it) {
  AgentFixture f;
  f.start();
  Told one;
  Told two;
  hold(f, one);
  f.agent->locks().lock(request("r2", kTwo, 0), two.client());
  ck_assert(run_until([&] { return !two.ended.empty(); }));
  ck_assert(two.ended[0].first == command::CODE_REFUSED);
  ck_assert(two.ended[0].second.find("flash[1] on here (token 1)") != std::string::npos);
}
END_TEST

// Nobody can say that all has ended, so the coordinator is told to wait until the token has expired.
START_TEST(a_client_that_hangs_up_gives_back_in_time) {
  AgentFixture f;
  f.start();
  Told told;
  const std::uint64_t number = hold(f, told);
  f.agent->locks().abandon("r1", number);
  ck_assert(f.phase_becomes(kLock, "fencing"));
  // Nothing is said for it any more.
  ck_assert_uint_eq(f.agent->deadline_ns(kLock, 1), 0);
  run_posted();
  ck_assert(f.coordinator.phase(kLock) == "fencing");
}
END_TEST

START_TEST(a_client_that_connects_again_goes_on) {
  AgentFixture f;
  f.start();
  Told before;
  Told after;
  const std::uint64_t number = hold(f, before);
  f.agent->locks().lock(request("r1", kOne), after.client());
  ck_assert(run_until([&] { return !after.held.empty(); }));
  ck_assert_uint_eq(after.held[0].first, 1);
  // The end of the first connection is noticed late, and means nothing.
  f.agent->locks().abandon("r1", number);
  run_posted();
  ck_assert(f.coordinator.phase(kLock) == "granted");
}
END_TEST

START_TEST(a_restarted_daemon_goes_on_with_it) {
  AgentFixture f;
  f.start();
  Told before;
  Told after;
  hold(f, before);
  f.make_agent();
  f.start();
  ck_assert(f.coordinator.phase(kLock) == "granted");
  hold(f, after);
  ck_assert_uint_eq(after.held[0].first, 1);
  ck_assert(unlocks(f, "r1"));
  ck_assert(f.coordinator.phase(kLock) == "free");
}
END_TEST

START_TEST(who_loses_it_is_told_and_says_when_all_has_ended) {
  AgentFixture f;
  f.start();
  Told told;
  hold(f, told);
  command::Command revoke;
  revoke.mutable_revoke()->set_device(kLock);
  revoke.mutable_revoke()->set_reason("needed elsewhere");
  f.coordinator.apply(revoke);
  ck_assert(run_until([&] { return !told.ended.empty(); }));
  ck_assert(told.ended[0].first == command::CODE_UNAVAILABLE);
  ck_assert(told.ended[0].second.find("needed elsewhere") != std::string::npos);
  const std::size_t heard = told.held.size();
  ck_assert(f.coordinator.phase(kLock) == "fencing");
  ck_assert(unlocks(f, "r1"));
  ck_assert(f.coordinator.phase(kLock) == "free");
  ck_assert_uint_eq(told.held.size(), heard);
}
END_TEST

// The record ends it: this host was thought to be gone.
START_TEST(a_lease_that_is_over_is_lost) {
  AgentFixture f;
  f.start();
  Told told;
  hold(f, told);
  command::Command gone;
  gone.mutable_host_gone()->set_host_id("here");
  gone.mutable_host_gone()->set_boot_id(test::kBootId);
  f.coordinator.apply(gone);
  ck_assert(run_until([&] { return !told.ended.empty(); }));
  ck_assert(told.ended[0].first == command::CODE_UNAVAILABLE);
  // There is nothing left to give back.
  ck_assert(!unlocks(f, "r1"));
}
END_TEST

START_TEST(what_is_not_held_cannot_be_given_back) {
  AgentFixture f;
  f.start();
  ck_assert(!unlocks(f, "never"));
}
END_TEST

START_TEST(a_host_that_cannot_write_holds_nothing) {
  AgentFixture f;
  f.start();
  // Something that is armed already under a greater token.
  std::optional<bool> stored;
  f.home_file->record_armed(kLock, 7, 1, test::kBootId, [&](const Result<void>& done) { stored = done.has_value(); });
  ck_assert(run_until([&] { return stored.has_value(); }));
  Told told;
  f.agent->locks().lock(request("r1", kOne), told.client());
  ck_assert(run_until([&] { return !told.ended.empty(); }));
  ck_assert(told.held.empty());
  ck_assert(told.ended[0].first == command::CODE_UNAVAILABLE);
  ck_assert(f.phase_becomes(kLock, "fencing"));
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "locks",
      {its_deadline_moves_on_until_it_is_given_back, who_waits_gets_it_when_all_has_ended, a_refusal_says_who_has_it,
       a_client_that_hangs_up_gives_back_in_time, a_client_that_connects_again_goes_on,
       a_restarted_daemon_goes_on_with_it, who_loses_it_is_told_and_says_when_all_has_ended,
       a_lease_that_is_over_is_lost, what_is_not_held_cannot_be_given_back, a_host_that_cannot_write_holds_nothing},
      60);
}
