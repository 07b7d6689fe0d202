// Time: a host's deadlines, when the coordinator may answer, and when a host counts as gone.
#include "daemon/lease/coordinator_session.h"
#include "daemon/lease/host_session.h"
#include "daemon/lease/timing.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

constexpr std::uint64_t kSecond = 1'000 * kNsPerMs;
constexpr Timing kTiming;  // 10 s, 1 s, 500 ppm
constexpr std::uint64_t kTtlLessDrift = 10 * kSecond - 5 * kNsPerMs;

const DeviceToken kDongle{"dongle", 7};

HostSession session() { return {kTiming, "h1", boot_of("h1"), "machine-h1"}; }

peer::RenewalAnswer answer_to(const peer::Renewal& renewal, command::Code code = command::CODE_OK) {
  peer::RenewalAnswer answer;
  answer.set_seq(renewal.seq());
  answer.mutable_status()->set_code(code);
  for (const auto& armed : renewal.armed()) *answer.add_renewed() = armed;
  return answer;
}

// --- arithmetic ------------------------------------------------------------------------------------

START_TEST(deadlines_are_exact) {
  ck_assert_uint_eq(deadline_ns(kTiming, 100, 10'000), 100 + kTtlLessDrift);
  ck_assert_uint_eq(deadline_ns(kTiming, 100, 0), 100);
  ck_assert_uint_eq(gone_ns(kTiming, 100), 100 + 11 * kSecond + 5 * kNsPerMs);
  // The greatest that the configuration allows, and the greatest of all, without overflow.
  const Timing widest{600'000, 120'000, 60'000, 50'000};
  ck_assert_uint_eq(gone_ns(widest, 0), (600 + 30 + 60) * kSecond);
  ck_assert_uint_eq(deadline_ns(widest, 0, UINT32_MAX), UINT32_MAX * kNsPerMs / 20 * 19);
  const std::uint64_t century = 100ULL * 365 * 86'400 * kSecond;
  ck_assert_uint_gt(deadline_ns(widest, century, UINT32_MAX), century);
}
END_TEST

// A host's clock runs `host_ppm` off, the coordinator's `coordinator_ppm`; the network takes what it takes.
START_TEST(a_host_has_stopped_before_it_counts_as_gone) {
  for (const Timing timing :
       {Timing{}, Timing{1'000, 200, 300, 500}, Timing{600'000, 120'000, 300, 50'000}, Timing{500, 50, 300, 1}}) {
    const double bound = timing.drift_ppm / 1e6;
    for (const double host_rate : {1 - bound, 1.0, 1 + bound}) {
      for (const double coordinator_rate : {1 - bound, 1.0, 1 + bound}) {
        // Real time 0: the renewal is sent; real time `way_ns`: it arrives and is answered.
        for (const double way_ns : {0.0, 1e6, 5e9}) {
          const auto answered = static_cast<std::uint64_t>(1e12 + way_ns * coordinator_rate);
          const double stops_at = static_cast<double>(deadline_ns(timing, 5'000, timing.ttl_ms) - 5'000) / host_rate;
          const double gone_at = way_ns + static_cast<double>(gone_ns(timing, answered) - answered) / coordinator_rate;
          // Not merely before: by nearly the whole grace, which is what enforcement may be late.
          ck_assert_msg(gone_at - stops_at >= 0.9 * timing.grace_ms * 1e6, "host %f coordinator %f way %f", host_rate,
                        coordinator_rate, way_ns);
        }
      }
    }
  }
}
END_TEST

// --- the host's side -------------------------------------------------------------------------------

START_TEST(nothing_is_armed_before_the_first_answer) {
  HostSession s = session();
  ck_assert_uint_eq(s.deadline_for_new(60'000), 0);
  s.arm(kDongle, 60'000);
  ck_assert_uint_eq(s.deadline(kDongle), 0);
}
END_TEST

START_TEST(a_deadline_counts_from_before_the_renewal_was_sent) {
  HostSession s = session();
  const auto renewal = s.renew(50 * kSecond);
  ASSERT_TEXT(renewal.host_id(), "h1");
  ASSERT_TEXT(renewal.boot_id(), boot_of("h1"));
  ASSERT_TEXT(renewal.machine_uuid(), "machine-h1");
  s.answer(answer_to(renewal));
  s.arm(kDongle, 0);  // less than the ttl is the ttl
  ck_assert_uint_eq(s.deadline(kDongle), 50 * kSecond + kTtlLessDrift);
  ck_assert_uint_eq(s.deadline_for_new(20'000), 50 * kSecond + 20 * kSecond - 10 * kNsPerMs);
}
END_TEST

START_TEST(an_answer_extends_what_it_names) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  const DeviceToken phone{"phone", 3};
  s.arm(kDongle, 10'000);
  s.arm(phone, 300'000);
  const auto renewal = s.renew(3 * kSecond);
  ck_assert_int_eq(renewal.armed_size(), 2);
  auto answer = answer_to(renewal);
  answer.mutable_renewed()->RemoveLast();  // phone
  peer::Armed& unknown = *answer.add_renewed();
  unknown.set_device("dongle");
  unknown.set_token(8);
  const auto orders = s.answer(answer);
  ck_assert_uint_eq(orders.deadlines.size(), 1);
  ck_assert(orders.deadlines[0].first == kDongle);
  ck_assert_uint_eq(orders.deadlines[0].second, 3 * kSecond + kTtlLessDrift);
  ck_assert_uint_eq(s.deadline(kDongle), 3 * kSecond + kTtlLessDrift);
  ck_assert_uint_eq(s.deadline(phone), 1 * kSecond + 300 * kSecond - 150 * kNsPerMs);
  ck_assert_uint_eq(s.deadline({"dongle", 8}), 0);
}
END_TEST

START_TEST(answers_out_of_order_never_shorten) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  s.arm(kDongle, 10'000);
  const auto first = s.renew(2 * kSecond);
  const auto second = s.renew(4 * kSecond);
  ck_assert_uint_eq(s.answer(answer_to(second)).deadlines.size(), 1);
  ck_assert(s.answer(answer_to(first)).deadlines.empty());   // older than the last one
  ck_assert(s.answer(answer_to(second)).deadlines.empty());  // a repeat
  ck_assert_uint_eq(s.deadline(kDongle), 4 * kSecond + kTtlLessDrift);
}
END_TEST

START_TEST(an_answer_that_is_not_ok_extends_nothing_but_may_order_to_fence) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  s.arm(kDongle, 10'000);
  for (const auto code : {command::CODE_UNSPECIFIED, command::CODE_UNAVAILABLE, command::CODE_REFUSED}) {
    auto answer = answer_to(s.renew(3 * kSecond), code);
    peer::Armed& fence = *answer.add_fence();
    fence.set_device("dongle");
    fence.set_token(7);
    const auto orders = s.answer(answer);
    ck_assert(orders.deadlines.empty());
    ck_assert_uint_eq(orders.fence.size(), 1);
    ck_assert(orders.fence[0] == kDongle);
  }
  ck_assert_uint_eq(s.deadline(kDongle), 1 * kSecond + kTtlLessDrift);
  ck_assert_uint_eq(s.deadline_for_new(0), 1 * kSecond + kTtlLessDrift);
}
END_TEST

START_TEST(an_answer_to_an_unknown_or_lapsed_renewal_extends_nothing) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  s.arm(kDongle, 10'000);
  peer::Renewal never;
  never.set_seq(99);
  peer::RenewalAnswer answer = answer_to(never);
  *answer.add_renewed() = [] {
    peer::Armed armed;
    armed.set_device("dongle");
    armed.set_token(7);
    return armed;
  }();
  ck_assert(s.answer(answer).deadlines.empty());
  const auto lapsed = s.renew(2 * kSecond);
  peer::Renewal kept;
  for (std::size_t i = 0; i < kInFlightMax; ++i) kept = s.renew((3 + i) * kSecond);
  ck_assert(s.answer(answer_to(lapsed)).deadlines.empty());
  ck_assert_uint_eq(s.answer(answer_to(kept)).deadlines.size(), 1);
}
END_TEST

START_TEST(a_disarmed_lease_is_neither_renewed_nor_extended) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  s.arm(kDongle, 10'000);
  const auto renewal = s.renew(2 * kSecond);
  s.disarm(kDongle);
  ck_assert(s.answer(answer_to(renewal)).deadlines.empty());
  ck_assert_uint_eq(s.deadline(kDongle), 0);
  ck_assert_int_eq(s.renew(3 * kSecond).armed_size(), 0);
  s.disarm(kDongle);
}
END_TEST

START_TEST(arming_again_never_shortens) {
  HostSession s = session();
  s.answer(answer_to(s.renew(1 * kSecond)));
  s.arm(kDongle, 300'000);
  const std::uint64_t first = s.deadline(kDongle);
  s.arm(kDongle, 10'000);
  ck_assert_uint_eq(s.deadline(kDongle), first);
  // But what is answered from now on counts with the shorter limit.
  s.answer(answer_to(s.renew(295 * kSecond)));
  ck_assert_uint_eq(s.deadline(kDongle), 295 * kSecond + kTtlLessDrift);
}
END_TEST

// --- the coordinator's side ------------------------------------------------------------------------

START_TEST(a_read_covers_the_renewals_that_came_before_it) {
  RenewalGate gate;
  ck_assert(!gate.next_read_ns().has_value());
  gate.arrive(1);
  gate.arrive(2);
  ck_assert(gate.next_read_ns().has_value());
  ck_assert_uint_le(*gate.next_read_ns(), 1'000);
  gate.read_began(1'000);
  gate.arrive(3);  // too late for this read
  ck_assert(!gate.next_read_ns().has_value());
  ck_assert(gate.read_ended() == (std::vector<std::uint64_t>{1, 2}));
  ck_assert_uint_eq(*gate.next_read_ns(), 1'000 + kReadGapNs);
  gate.read_began(1'000 + kReadGapNs);
  ck_assert(gate.read_ended() == (std::vector<std::uint64_t>{3}));
  ck_assert(!gate.next_read_ns().has_value());
  ck_assert(gate.read_ended().empty());
}
END_TEST

peer::Renewal renewal_of(const std::string& host, std::initializer_list<DeviceToken> armed, int boot = 1) {
  HostSession s(kTiming, host, boot_of(host, boot), "machine-" + host);
  for (const auto& lease : armed) s.arm(lease, 0);
  return s.renew(kSecond);
}

// "renewed dongle 1; fence phone 2".
std::string answered(const State& state, const peer::Renewal& renewal) {
  peer::RenewalAnswer answer;
  Fences fences;
  fences.observe_all(state);
  fill_answer(state, fences, renewal, answer);
  std::string out;
  for (const auto& r : answer.renewed()) out += "renewed " + r.device() + " " + std::to_string(r.token()) + "; ";
  for (const auto& f : answer.fence()) out += "fence " + f.device() + " " + std::to_string(f.token()) + "; ";
  return out;
}

START_TEST(an_answer_renews_what_the_record_gives_and_fences_the_rest) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.plug("phone", "h1");
  w.plug("probe", "h1");
  w.acquire("r1", "web@h2", {"dongle", "phone", "probe"});
  const auto renewal = renewal_of("h1", {{"dongle", 1}, {"phone", 1}});
  ASSERT_TEXT(answered(w.state(), renewal), "renewed dongle 1; renewed phone 1; ");
  // What is being revoked works on until its grace is over.
  w.revoke("dongle", 1'000);
  ASSERT_TEXT(answered(w.state(), renewal), "renewed dongle 1; renewed phone 1; ");
  // Ordered again and again, whether the host says that it has armed it or not.
  w.grace_over("dongle", 1);
  w.revoke("probe", 0);
  ASSERT_TEXT(answered(w.state(), renewal), "renewed phone 1; fence dongle 1; fence probe 1; ");
  // An earlier or unknown token, an unknown device.
  ASSERT_TEXT(answered(w.state(), renewal_of("h1", {{"phone", 2}, {"what", 1}})),
              "fence dongle 1; fence phone 2; fence probe 1; fence what 1; ");
  // Of another host, or of another boot of this one, nothing is renewed.
  ASSERT_TEXT(answered(w.state(), renewal_of("h2", {{"phone", 1}})), "fence phone 1; ");
  ASSERT_TEXT(answered(w.state(), renewal_of("h1", {{"phone", 1}}, 2)),
              "fence dongle 1; fence phone 1; fence probe 1; ");
  w.fenced("dongle", 1, "h1");
  w.fenced("probe", 1, "h1");
  ASSERT_TEXT(answered(w.state(), renewal), "renewed phone 1; fence dongle 1; ");
}
END_TEST

START_TEST(a_rebooted_home_is_ordered_to_fence_what_its_earlier_boot_had) {
  World w;
  w.host("h1");
  w.plug("net", "h1", {.kind = record::DEVICE_KIND_ENDPOINT});
  w.acquire("r1", "web@h1", {"net"});
  w.host("h1", 2);
  ASSERT_TEXT(answered(w.state(), renewal_of("h1", {}, 2)), "fence net 1; ");
}
END_TEST

START_TEST(a_host_is_gone_after_its_last_answer) {
  World w;
  w.host("h1");
  w.host("h2");
  const std::uint64_t elected = 100 * kSecond;
  const std::uint64_t after = 11 * kSecond + 5 * kNsPerMs;
  CoordinatorSessions sessions(kTiming, elected);
  // A new coordinator knows no renewals.
  ck_assert(sessions.gone(w.state(), elected + after - 1).empty());
  ck_assert_uint_eq(sessions.gone(w.state(), elected + after).size(), 2);
  ck_assert_uint_eq(*sessions.next_ns(w.state()), elected + after);
  sessions.answered("h1", boot_of("h1"), elected + kSecond);
  sessions.answered("h2", boot_of("h2", 7), elected + 2 * kSecond);  // of another boot: does not count
  const auto gone = sessions.gone(w.state(), elected + after);
  ck_assert_uint_eq(gone.size(), 1);
  ASSERT_TEXT(gone[0].host_id, "h2");
  ASSERT_TEXT(gone[0].boot_id, boot_of("h2"));
  w.host_gone("h2");
  ck_assert(sessions.gone(w.state(), elected + after).empty());
  ck_assert_uint_eq(*sessions.next_ns(w.state()), elected + kSecond + after);
  w.host_gone("h1");
  ck_assert(!sessions.next_ns(w.state()).has_value());
  // Back: its session begins with its registration.
  w.host("h2", 7);
  sessions.answered("h2", boot_of("h2", 7), elected + 50 * kSecond);
  ck_assert(sessions.gone(w.state(), elected + 50 * kSecond + after - 1).empty());
}
END_TEST

}  // namespace

int main() {
  return run_suite(
      "sessions",
      {deadlines_are_exact, a_host_has_stopped_before_it_counts_as_gone, nothing_is_armed_before_the_first_answer,
       a_deadline_counts_from_before_the_renewal_was_sent, an_answer_extends_what_it_names,
       answers_out_of_order_never_shorten, an_answer_that_is_not_ok_extends_nothing_but_may_order_to_fence,
       an_answer_to_an_unknown_or_lapsed_renewal_extends_nothing, a_disarmed_lease_is_neither_renewed_nor_extended,
       arming_again_never_shortens, a_read_covers_the_renewals_that_came_before_it,
       an_answer_renews_what_the_record_gives_and_fences_the_rest,
       a_rebooted_home_is_ordered_to_fence_what_its_earlier_boot_had, a_host_is_gone_after_its_last_answer});
}
