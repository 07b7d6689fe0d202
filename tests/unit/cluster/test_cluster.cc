// Several daemons: who becomes the coordinator, how the others reach it, and what a change of coordinator may lose.
#include <algorithm>

#include "common/boottime.h"
#include "daemon/lease/keys.h"
#include "tests/unit/cluster/cluster_world.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using namespace usblease::cluster_test;

namespace {

std::uint64_t granted_token(const command::Reply& reply) {
  ck_assert_msg(reply.status().code() == command::CODE_OK, "%s", reply.status().message().c_str());
  ck_assert_int_eq(reply.grants_size(), 1);
  return reply.grants(0).token();
}

// How many leases of `device` were ever granted, as its record says.
std::uint64_t last_token(World& world, const std::string& device) {
  record::Device record;
  ck_assert(record.ParseFromString(world.database.records.at(lease::device_key(device)).value));
  return record.last_token();
}

// --- Who is it ---------------------------------------------------------------------------------------

START_TEST(alone_it_is_elected_without_a_wait) {
  World world("a");
  const std::uint64_t before_ns = boottime_now_ns();
  world.until([&] { return world["a"].is_coordinator(); });
  ck_assert_uint_lt(boottime_now_ns() - before_ns, 1'000'000'000);
  ck_assert_uint_eq(world["a"].node().coordinator()->term(), 1);
  ck_assert(world["a"].router().local());
}
END_TEST

START_TEST(one_of_three_is_elected_and_a_plain_host_is_served) {
  World world("a b c", "p");
  const std::string coordinator = world.settle();
  ck_assert_uint_eq(world[coordinator].node().coordinator()->term(), 1);
  ck_assert(!world["p"].router().local());
  world.plug("p", "dongle");
  ck_assert_uint_ne(granted_token(world.submit("p", acquire("p", "r1", "dongle"))), 0);
  // What was decided was pushed before the reply.
  const auto& log = world["p"].log;
  ck_assert_text_eq(log.back(), "reply");
  ck_assert_text_eq(log[log.size() - 2], "view");
  ck_assert_text_eq(world["p"].view.devices(0).lease().request_id(), "r1");
  ck_assert_int_eq(world.renew("p").status().code(), command::CODE_OK);
}
END_TEST

START_TEST(a_claim_whose_answer_is_lost_is_read_back) {
  World world("a");
  world["a"].store().lose_answers(1);
  world.until([&] { return world["a"].is_coordinator(); });
  ck_assert_uint_eq(world["a"].node().coordinator()->term(), 1);
}
END_TEST

START_TEST(a_daemon_that_starts_again_takes_its_own_key) {
  World world("a b c");
  const std::string first = world.settle();
  world.kill(first);
  world.add(first, true);
  const std::string second = world.settle();
  ck_assert_uint_eq(world[second].node().coordinator()->term(), 2);
}
END_TEST

START_TEST(a_killed_coordinator_is_followed_by_votes) {
  World world("a b c", "p");
  const std::string first = world.settle();
  const std::uint64_t killed_ns = boottime_now_ns();
  world.kill(first);  // its key stays: the owner's lease has not run out
  const std::string second = world.settle();
  ck_assert_uint_lt(boottime_now_ns() - killed_ns, 1'000'000'000);
  ck_assert_str_ne(first.c_str(), second.c_str());
  ck_assert_uint_eq(world[second].node().coordinator()->term(), 2);
  // Nobody takes the key from it in turn.
  world.run_for_ms(500);
  ck_assert_text_eq(world.coordinator(), second);
  ck_assert_uint_eq(world[second].node().coordinator()->term(), 2);
}
END_TEST

START_TEST(one_candidate_alone_does_not_vote_a_coordinator_away) {
  World world("a b c");
  const std::string first = world.settle();
  const std::string other = world.any_other(first);
  // Only `other` sees a reset.
  world[other].node().coordinator()->election().connection_down(first, cluster::DownReason::kReset);
  world.run_for_ms(400);
  ck_assert_text_eq(world.coordinator(), first);
  ck_assert_uint_eq(world[first].node().coordinator()->term(), 1);
}
END_TEST

START_TEST(a_network_that_times_out_is_no_death) {
  World world("a b c");
  const std::string first = world.settle();
  for (const char* id : {"a", "b", "c"}) {
    if (first != id) world.net.cut(first, id);
  }
  world.run_for_ms(400);
  ck_assert(world[first].is_coordinator());
  // The owner's lease runs out: all candidates reach the store, so each may be elected, and one is.
  world[first].store().expire();
  world.until([&] {
    const std::string now = world.coordinator();
    return !now.empty() && world[now].node().coordinator()->term() == 2;
  });
}
END_TEST

START_TEST(a_transfer_goes_to_the_host_that_was_named) {
  World world("a b c", "p");
  const std::string first = world.settle();
  world.plug("p", "dongle");
  const std::string to = world.any_other(first);
  std::optional<Result<void>> told;
  const std::uint64_t before_ns = boottime_now_ns();
  world[first].node().transfer(to, [&](const Result<void>& result) { told = result; });
  // What is asked meanwhile is answered by one of the two, and granted once.
  const std::uint64_t token = granted_token(world.submit("p", acquire("p", "r1", "dongle")));
  world.until([&] { return told.has_value(); });
  ck_assert_ok(*told);
  ck_assert_text_eq(world.settle(), to);
  ck_assert_uint_lt(boottime_now_ns() - before_ns, 500'000'000);
  ck_assert_uint_eq(last_token(world, "dongle"), token);
}
END_TEST

START_TEST(a_transfer_to_nobody_changes_nothing) {
  World world("a b c", "p");
  const std::string first = world.settle();
  std::optional<Result<void>> told;
  world[first].node().transfer("p", [&](const Result<void>& result) { told = result; });
  ck_assert_fails(*told, ErrorCode::kRefused, "no member of the store");
  world[world.any_other(first)].node().transfer(first, [&](const Result<void>& result) { told = result; });
  ck_assert_fails(*told, ErrorCode::kRefused, "not the coordinator");
  ck_assert_text_eq(world.coordinator(), first);
}
END_TEST

// --- What a change may lose ------------------------------------------------------------------------------

START_TEST(a_lost_answer_and_a_repeat_give_the_same_grant) {
  World world("a b c", "p");
  world.settle();
  world.plug("p", "dongle");
  // The view and the reply of the grant are lost, and the connection with them.
  world["p"].transport().lose_answers(2);
  const std::uint64_t token = granted_token(world.submit("p", acquire("p", "r1", "dongle")));
  ck_assert_uint_eq(last_token(world, "dongle"), token);
  ck_assert_text_eq(world["p"].view.devices(0).lease().request_id(), "r1");
}
END_TEST

START_TEST(a_command_in_flight_at_a_change_is_decided_once) {
  World world("a b c", "p");
  const std::string first = world.settle();
  world.plug("p", "dongle");
  world[first].store().hold_commits(true);
  std::optional<command::Reply> got;
  world["p"].router().submit(acquire("p", "r1", "dongle"), [&](const command::Reply& reply) { got = reply; });
  world.run_for_ms(50);
  world[first].store().expire();
  // Its own claim is held back too.
  world.until([&] { return !world.coordinator().empty() && world.coordinator() != first; });
  world[first].store().hold_commits(false);  // too late: its guards fail
  world.until([&] { return got.has_value(); });
  ck_assert_uint_eq(granted_token(*got), last_token(world, "dongle"));
}
END_TEST

START_TEST(a_wait_lives_through_a_change_of_coordinator) {
  World world("a b c", "p q");
  const std::string first = world.settle();
  world.plug("p", "dongle");
  world.submit("q", register_host("q"));
  const command::Command holder = acquire("p", "r1", "dongle");
  const std::uint64_t token = granted_token(world.submit("p", holder));
  const command::Command waiting = acquire("q", "r2", "dongle", 60'000, "fedcba9876543210");
  ck_assert_int_eq(world.submit("q", waiting).status().code(), command::CODE_QUEUED);
  world.kill(first);
  world.settle();
  world.submit("p", release(holder));
  world.submit("p", confirm_fenced("p", "dongle", token));
  world.until([&] { return world["q"].settled.contains("r2"); });
  ck_assert_uint_gt(granted_token(world["q"].settled.at("r2")), token);
}
END_TEST

START_TEST(a_coordinator_that_is_elected_again_under_the_same_term_is_joined_anew) {
  World world("a", "p");
  world.settle();
  world.plug("p", "dongle");
  const int ready = world["p"].ready;
  world.database.records.erase(lease::kTermKey);  // the store went back in time
  world["a"].store().expire();
  world.until([&] { return world["p"].ready > ready; });
  ck_assert_uint_eq(world["a"].node().coordinator()->term(), 1);
  ck_assert_uint_ne(granted_token(world.submit("p", acquire("p", "r1", "dongle", 60'000))), 0);
  ck_assert_text_eq(world["p"].view.devices(0).lease().request_id(), "r1");
}
END_TEST

START_TEST(a_new_subscriber_sees_nothing_that_is_not_written) {
  World world("a");
  world.settle();
  world.plug("a", "dongle");
  world["a"].store().hold_commits(true);
  bool answered = false;
  world["a"].router().submit(acquire("a", "r1", "dongle"), [&](const command::Reply&) { answered = true; });
  world.run_for_ms(50);
  const auto views = [&] { return std::count(world["a"].log.begin(), world["a"].log.end(), "view"); };
  const auto before = views();
  world["a"].node().coordinator()->subscribe("a");
  ck_assert_int_eq(views(), before);
  world["a"].store().hold_commits(false);
  world.until([&] { return answered; });
  // The change, and the whole that was asked for.
  ck_assert_int_eq(views(), before + 2);
  ck_assert(world["a"].view.whole());
  ck_assert_text_eq(world["a"].view.devices(0).lease().request_id(), "r1");
}
END_TEST

START_TEST(a_deposed_coordinator_answers_no_renewal) {
  World world("a b c");
  const std::string first = world.settle();
  world.submit(first, register_host(first));
  // It hears nothing of its end: neither from its watch nor from its peers.
  world[first].store().mute_watches();
  for (const char* id : {"a", "b", "c"}) {
    if (first != id) world.net.cut(first, id);
  }
  world[first].store().expire();
  world.until([&] {
    for (const char* id : {"a", "b", "c"}) {
      if (first != id && world[id].is_coordinator()) return true;
    }
    return false;
  });
  ck_assert(world[first].is_coordinator());  // it believes so
  const peer::RenewalAnswer answer = world.renew(first);
  ck_assert_int_eq(answer.status().code(), command::CODE_UNAVAILABLE);
  // And it believes so no longer.
  world.until([&] { return !world[first].is_coordinator(); });
}
END_TEST

START_TEST(a_deposed_coordinator_writes_nothing) {
  World world("a b c");
  const std::string first = world.settle();
  world.plug(first, "dongle");
  world[first].store().mute_watches();
  for (const char* id : {"a", "b", "c"}) {
    if (first != id) world.net.cut(first, id);
  }
  world[first].store().expire();
  world.until([&] {
    for (const char* id : {"a", "b", "c"}) {
      if (first != id && world[id].is_coordinator()) return true;
    }
    return false;
  });
  const std::size_t written = world.database.writers.size();
  std::optional<command::Reply> got;
  world[first].router().submit(acquire(first, "r1", "dongle"), [&](const command::Reply& reply) { got = reply; });
  world.until([&] { return !world[first].is_coordinator(); });
  ck_assert_uint_eq(std::count(world.database.writers.begin() + static_cast<std::ptrdiff_t>(written),
                               world.database.writers.end(), first),
                    0);
  // Healed, the same command reaches the new one.
  for (const char* id : {"a", "b", "c"}) {
    if (first != id) world.net.heal(first, id);
  }
  world.until([&] { return got.has_value(); });
  ck_assert_uint_eq(granted_token(*got), last_token(world, "dongle"));
}
END_TEST

START_TEST(renewals_write_nothing) {
  World world("a b c", "p");
  world.settle();
  world.plug("p", "dongle");
  const std::uint64_t revision = world.database.revision;
  for (int i = 0; i < 20; ++i) ck_assert_int_eq(world.renew("p").status().code(), command::CODE_OK);
  ck_assert_uint_eq(world.database.revision, revision);
}
END_TEST

START_TEST(without_a_coordinator_a_command_waits_and_a_renewal_does_not) {
  World world("a b c", "p");
  const std::string first = world.settle();
  for (const char* id : {"a", "b", "c"}) world.net.cut("p", id);
  world.until([&] { return !world["p"].router().ready(); });
  ck_assert_int_eq(world.renew("p").status().code(), command::CODE_UNAVAILABLE);
  std::optional<command::Reply> got;
  world["p"].router().submit(register_host("p"), [&](const command::Reply& reply) { got = reply; });
  world.run_for_ms(100);
  ck_assert(!got.has_value());
  world.net.heal("p", first);
  world.until([&] { return got.has_value(); });
  ck_assert_int_eq(got->status().code(), command::CODE_OK);
}
END_TEST

START_TEST(a_wait_for_a_coordinator_ends) {
  World world("a b c", "p");
  world.settle();
  for (const char* id : {"a", "b", "c"}) world.net.cut("p", id);
  world.until([&] { return !world["p"].router().ready(); });
  const command::Reply reply = world.submit("p", register_host("p"));
  ck_assert_int_eq(reply.status().code(), command::CODE_UNAVAILABLE);
  ck_assert(reply.status().message().find("cannot be reached") != std::string::npos);
}
END_TEST

// --- Views and clients of other hosts ----------------------------------------------------------------------

START_TEST(a_view_larger_than_a_frame_arrives_whole) {
  World world("a b c", "p");
  const std::string first = world.settle();
  world.submit("p", register_host("p"));
  constexpr int kDevices = 80;
  for (int i = 0; i < kDevices; ++i) {
    command::Command command = report_device("p", "device" + std::to_string(i));
    for (int guest = 0; guest < 100; ++guest)
      command.mutable_report_device()->mutable_policy()->add_guests(std::to_string(guest) + std::string(200, 'g'));
    ck_assert_int_eq(world.submit("p", command).status().code(), command::CODE_OK);
  }
  world.kill(first);
  world.settle();
  ck_assert(world["p"].view.whole());
  ck_assert_int_eq(world["p"].view.devices_size(), kDevices);
  ck_assert_uint_gt(world["p"].view.ByteSizeLong(), 1024 * 1024);
}
END_TEST

START_TEST(a_forwarded_request_is_answered_or_ends) {
  World world("a b c", "p");
  const std::string first = world.settle();
  std::vector<std::string> frames;
  int ends = 0;
  const auto forward = [&] {
    peer::Forward request;
    request.set_client_frame("bytes");
    request.set_caller("root");
    return world["p"].router().forward(
        request, [&](const std::string& frame, bool more) { frames.push_back(frame + (more ? "+" : "")); },
        [&](const command::Status* refused) { ends += refused == nullptr ? 1 : 100; });
  };
  ck_assert_uint_ne(forward(), 0);
  world.until([&] { return world[first].forwarded.size() == 1; });
  ck_assert_text_eq(world[first].forwarded[0].host_id, "p");
  ck_assert_text_eq(world[first].forwarded[0].request.client_frame(), "bytes");
  world[first].forwarded[0].answer("one", true);
  world[first].forwarded[0].answer("two", false);
  world[first].forwarded[0].answer("ignored", false);
  world.until([&] { return frames.size() == 2; });
  ck_assert_text_eq(frames[0], "one+");
  ck_assert_text_eq(frames[1], "two");
  // The client goes away.
  const std::uint64_t abandoned = forward();
  world.until([&] { return world[first].forwarded.size() == 2; });
  world["p"].router().abandon(abandoned);
  world.until([&] { return world[first].clients_gone == 1; });
  // The coordinator goes away.
  ck_assert_uint_ne(forward(), 0);
  world.until([&] { return world[first].forwarded.size() == 3; });
  world.kill(first);
  world.until([&] { return ends == 1; });
  ck_assert_uint_eq(frames.size(), 2);
}
END_TEST

START_TEST(a_follower_is_handed_on_by_a_transfer) {
  World world("a b c", "p");
  const std::string first = world.settle();
  int ends = 0;
  peer::Forward request;
  request.set_caller("root");
  world["p"].router().forward(
      request, [](const std::string& /*frame*/, bool /*more*/) {},
      [&](const command::Status* refused) { ends += refused == nullptr ? 1 : 100; });
  world.until([&] { return world[first].forwarded.size() == 1; });
  world[first].node().transfer(world.any_other(first), [](const Result<void>& /*result*/) {});
  world.until([&] { return ends == 1; });
  ck_assert_int_eq(world[first].clients_gone, 1);
}
END_TEST

// --- What a peer may not do ----------------------------------------------------------------------------------

START_TEST(a_host_speaks_for_itself_alone) {
  World world("a b c", "p q");
  world.settle();
  world.plug("q", "dongle");
  const command::Reply reply = world.submit("p", register_host("q"));
  ck_assert_int_eq(reply.status().code(), command::CODE_DENIED);
  ck_assert(reply.status().message().find("may not register for host \"q\"") != std::string::npos);
  ck_assert_int_eq(world.submit("p", report_device("q", "dongle")).status().code(), command::CODE_DENIED);
  ck_assert_int_eq(world.submit("p", acquire("q", "r1", "dongle")).status().code(), command::CODE_DENIED);
  ck_assert_int_eq(world.submit("p", confirm_fenced("q", "dongle", 1)).status().code(), command::CODE_DENIED);
  command::Command gone;
  gone.mutable_host_gone()->set_host_id("q");
  ck_assert_int_eq(world.submit("p", gone).status().code(), command::CODE_DENIED);
}
END_TEST

START_TEST(garbage_ends_its_connection_and_nothing_else) {
  World world("a b c", "p q");
  const std::string first = world.settle();
  ck_assert(world["p"].transport().ask(first, "\xff\xff\xff"));
  world.until([&] { return world[first].transport().dropped() == 1; });
  ck_assert_int_eq(world.submit("q", register_host("q")).status().code(), command::CODE_OK);
}
END_TEST

Suite* cluster_suite() {
  Suite* suite = suite_create("cluster");
  TCase* tcase = tcase_create("cluster");
  tcase_set_timeout(tcase, 60);
  for (const TTest* test : {alone_it_is_elected_without_a_wait,
                            one_of_three_is_elected_and_a_plain_host_is_served,
                            a_claim_whose_answer_is_lost_is_read_back,
                            a_daemon_that_starts_again_takes_its_own_key,
                            a_killed_coordinator_is_followed_by_votes,
                            one_candidate_alone_does_not_vote_a_coordinator_away,
                            a_network_that_times_out_is_no_death,
                            a_transfer_goes_to_the_host_that_was_named,
                            a_transfer_to_nobody_changes_nothing,
                            a_lost_answer_and_a_repeat_give_the_same_grant,
                            a_command_in_flight_at_a_change_is_decided_once,
                            a_wait_lives_through_a_change_of_coordinator,
                            a_coordinator_that_is_elected_again_under_the_same_term_is_joined_anew,
                            a_new_subscriber_sees_nothing_that_is_not_written,
                            a_deposed_coordinator_answers_no_renewal,
                            a_deposed_coordinator_writes_nothing,
                            renewals_write_nothing,
                            without_a_coordinator_a_command_waits_and_a_renewal_does_not,
                            a_wait_for_a_coordinator_ends,
                            a_view_larger_than_a_frame_arrives_whole,
                            a_forwarded_request_is_answered_or_ends,
                            a_follower_is_handed_on_by_a_transfer,
                            a_host_speaks_for_itself_alone,
                            garbage_ends_its_connection_and_nothing_else})
    tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  return suite;
}

}  // namespace

int main() { return usblease::test::run_suite(cluster_suite()); }
