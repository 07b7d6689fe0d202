// Who gets what: grants, refusals, the queue, sets, repeats, reservations, policy.
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

World two_hosts_one_dongle() {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  return w;
}

START_TEST(a_free_device_is_granted_at_once) {
  World w = two_hosts_one_dongle();
  w.told();
  ASSERT_OK(w.acquire("r1", "web@h2", {"dongle"}));
  ck_assert_int_eq(w.last.reply.grants_size(), 1);
  ck_assert_uint_eq(w.last.reply.grants(0).token(), 1);
  ASSERT_TEXT(w.last.reply.grants(0).instance().host_id(), "h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  ASSERT_TEXT(w.told(), "granted dongle web@h2 token 1\n");
  ck_assert(w.last.settled.empty());
  ck_assert(w.state().requests.empty());
}
END_TEST

START_TEST(without_a_wait_it_is_refused_and_told_who_is_in_the_way) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "web@h2", {"dongle"}, {.duration_s = 60});
  const auto before = entries_of(w.state());
  ASSERT_REFUSED(w.acquire("r2", "db@h1", {"dongle"}, {.wait_ms = 0}));
  ck_assert_int_eq(w.last.reply.obstacles_size(), 1);
  const command::Obstacle& obstacle = w.last.reply.obstacles(0);
  ASSERT_TEXT(obstacle.guest(), "web");
  ASSERT_TEXT(obstacle.host(), "h2");
  ck_assert_uint_eq(obstacle.token(), 1);
  ck_assert_uint_eq(obstacle.until_unix_s(), w.now_unix_s + 60);
  ck_assert_uint_eq(obstacle.ahead(), 0);
  ck_assert(w.last.changes.empty());
  ck_assert(entries_of(w.state()) == before);
}
END_TEST

START_TEST(a_device_that_nobody_knows_is_not_found) {
  World w = two_hosts_one_dongle();
  ck_assert_int_eq(w.acquire("r1", "web@h1", {"dongle", "phone"}), command::CODE_NOT_FOUND);
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(a_start_of_an_unknown_or_earlier_boot_is_refused) {
  World w = two_hosts_one_dongle();
  ASSERT_REFUSED(w.acquire("r1", "web@h3", {"dongle"}));
  ASSERT_REFUSED(w.acquire("r2", "web@h1", {"dongle"}, {.boot = 7}));
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(the_queue_is_first_in_first_out) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  ASSERT_QUEUED(w.acquire("r9", "b@h1", {"dongle"}));
  ASSERT_QUEUED(w.acquire("r3", "c@h2", {"dongle"}));
  ck_assert_uint_eq(w.last.reply.obstacles(0).ahead(), 1);
  ASSERT_TEXT(w.queue("dongle"), "r9 r3");
  w.told();
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "r9 OK dongle 2");
  w.release("b@h1");
  w.fenced("dongle", 2, "h1");
  ASSERT_TEXT(w.settled(), "r3 OK dongle 3");
  ASSERT_TEXT(w.told(),
              "released dongle a@h1 token 1\n"
              "fenced dongle a@h1 token 1\n"
              "granted dongle b@h1 token 2\n"
              "released dongle b@h1 token 2\n"
              "fenced dongle b@h1 token 2\n"
              "granted dongle c@h2 token 3\n");
}
END_TEST

START_TEST(a_greater_priority_goes_first) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("low", "b@h1", {"dongle"}, {.priority = -5});
  w.acquire("mid", "c@h1", {"dongle"});
  w.acquire("high", "d@h1", {"dongle"}, {.priority = 10});
  w.acquire("high2", "e@h1", {"dongle"}, {.priority = 10});
  ASSERT_TEXT(w.queue("dongle"), "high high2 mid low");
}
END_TEST

START_TEST(a_set_is_granted_whole_or_not_at_all) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  w.acquire("r1", "a@h1", {"dongle"});
  ASSERT_QUEUED(w.acquire("set", "b@h1", {"phone", "dongle"}));
  ASSERT_TEXT(w.holder("phone"), "free");
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "set OK dongle 2 phone 1");
}
END_TEST

START_TEST(the_lengths_of_all_queues_are_those_of_each) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  ck_assert(queue_lengths(w.state()).empty());
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("set", "b@h1", {"phone", "dongle"});
  w.acquire("r2", "c@h1", {"dongle"});
  ck_assert(queue_lengths(w.state()) == (std::map<std::string, std::size_t>{{"dongle", 2}, {"phone", 1}}));
  for (const auto& [device, length] : queue_lengths(w.state()))
    ck_assert_uint_eq(queue_of(w.state(), device).size(), length);
}
END_TEST

START_TEST(a_waiting_set_is_not_starved_by_requests_for_its_parts) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("set", "b@h1", {"dongle", "phone"});
  // The phone is free, but the set was there first.
  ASSERT_REFUSED(w.acquire("later", "c@h1", {"phone"}, {.wait_ms = 0}));
  ck_assert_uint_eq(w.last.reply.obstacles(0).ahead(), 1);
  ASSERT_QUEUED(w.acquire("later", "c@h1", {"phone"}));
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "set OK dongle 2 phone 1");
  // When the set goes away ungranted, what it blocked is granted at once.
  w.release("b@h1");
  w.acquire("set2", "d@h1", {"dongle", "phone"}, {.priority = 50});
  w.fenced("phone", 1, "h2");
  ASSERT_TEXT(w.settled(), "");
  w.cancel("set2");
  ASSERT_TEXT(w.settled(), "set2 TIMED_OUT; later OK phone 2");
}
END_TEST

START_TEST(a_set_with_an_absent_device_blocks_nobody) {
  World w = two_hosts_one_dongle();
  w.unplug("phone", "h2");
  ASSERT_QUEUED(w.acquire("set", "a@h1", {"dongle", "phone"}));
  ASSERT_OK(w.acquire("r2", "b@h1", {"dongle"}));
  // From the moment that the phone is there, the set's place counts again.
  w.plug("phone", "h2", {.counter = 2});
  ASSERT_QUEUED(w.acquire("r3", "c@h1", {"dongle"}));
  w.release("b@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "set OK dongle 2 phone 1");
}
END_TEST

START_TEST(two_sets_in_opposite_order_do_not_deadlock) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("r2", "b@h1", {"phone"});
  w.acquire("s1", "c@h1", {"dongle", "phone"});
  w.acquire("s2", "d@h2", {"phone", "dongle"});
  w.release("b@h1");
  w.fenced("phone", 1, "h2");
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "s1 OK dongle 2 phone 2");
  w.release("c@h1");
  w.fenced("dongle", 2, "h1");
  w.fenced("phone", 2, "h2");
  ASSERT_TEXT(w.settled(), "s2 OK dongle 3 phone 3");
}
END_TEST

START_TEST(a_start_that_holds_a_part_waits_only_for_the_rest) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("r2", "b@h1", {"phone"});
  ASSERT_QUEUED(w.acquire("more", "a@h1", {"dongle", "phone"}));
  ck_assert_int_eq(w.last.reply.obstacles_size(), 1);
  ASSERT_TEXT(w.last.reply.obstacles(0).device(), "phone");
  w.release("b@h1");
  w.fenced("phone", 1, "h2");
  ASSERT_TEXT(w.settled(), "more OK dongle 1 phone 2");
  ASSERT_TEXT(w.lease("dongle").request_id(), "r1");
  // The part that was revoked meanwhile is asked for anew, with the rest.
  w.revoke("phone", 0);
  ASSERT_QUEUED(w.acquire("again", "a@h1", {"dongle", "phone"}));
  w.revoke("dongle", 0);
  w.fenced("dongle", 1, "h1");
  w.fenced("phone", 2, "h2");
  ASSERT_TEXT(w.settled(), "again OK dongle 2 phone 3");
}
END_TEST

START_TEST(two_requests_of_one_start_for_one_device_are_both_answered) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("r2", "b@h1", {"dongle"});
  w.acquire("r3", "b@h1", {"dongle"});
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  // Under one token: the second names what the first has got.
  ASSERT_TEXT(w.settled(), "r2 OK dongle 2; r3 OK dongle 2");
  ck_assert(w.state().requests.empty());
}
END_TEST

START_TEST(a_repeat_gets_the_same_grant) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h2");
  w.acquire("r1", "web@h1", {"phone", "dongle"});
  const std::string first = w.last.reply.SerializeAsString();
  ASSERT_OK(w.acquire("r1", "web@h1", {"phone", "dongle"}));
  ASSERT_TEXT(w.last.reply.SerializeAsString(), first);
  ck_assert(w.last.changes.empty());
  // Also after the policy has changed, and while nothing new is granted.
  record::Policy closed;
  closed.add_guests("nobody");
  w.plug("dongle", "h1", {.policy = closed});
  w.host("h2", 1, {{"phone", 77, 77}});
  ck_assert(!w.state().meta.behind().empty());
  ASSERT_OK(w.acquire("r1", "web@h1", {"phone", "dongle"}));
  ASSERT_TEXT(w.last.reply.SerializeAsString(), first);
}
END_TEST

START_TEST(a_repeat_keeps_its_place) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("r2", "b@h1", {"dongle"});
  w.acquire("r3", "c@h1", {"dongle"});
  ASSERT_QUEUED(w.acquire("r2", "b@h1", {"dongle"}));
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.queue("dongle"), "r2 r3");
}
END_TEST

START_TEST(a_repeat_after_the_end_is_no_new_request) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  w.revoke("dongle", 5'000);
  ASSERT_REFUSED(w.acquire("r1", "a@h1", {"dongle"}));
  w.revoke("dongle", 0);
  ASSERT_REFUSED(w.acquire("r1", "a@h1", {"dongle"}));
  w.fenced("dongle", 1, "h1");
  ASSERT_REFUSED(w.acquire("r1", "a@h1", {"dongle"}));
  ASSERT_TEXT(w.holder("dongle"), "free");
  ASSERT_OK(w.acquire("r2", "a@h1", {"dongle"}));
}
END_TEST

START_TEST(a_request_id_belongs_to_one_start_and_one_set) {
  World w = two_hosts_one_dongle();
  w.plug("phone", "h1");
  w.acquire("r1", "a@h1", {"dongle"});
  ASSERT_REFUSED(w.acquire("r1", "b@h1", {"dongle"}));           // granted to another start
  ASSERT_REFUSED(w.acquire("r1", "a@h1", {"dongle", "phone"}));  // granted for another set
  ASSERT_TEXT(w.holder("phone"), "free");
  w.acquire("r2", "b@h1", {"dongle"});
  ASSERT_REFUSED(w.acquire("r2", "c@h1", {"dongle"}));
  ASSERT_REFUSED(w.acquire("r2", "b@h1", {"dongle", "phone"}));
  ASSERT_REFUSED(w.acquire("r2", "b@h1", {"dongle"}, {.start = 2}));
  ASSERT_TEXT(w.queue("dongle"), "r2");
}
END_TEST

START_TEST(cancel_ends_a_waiting_request_only) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "a@h1", {"dongle"});
  w.acquire("r2", "b@h1", {"dongle"});
  w.told();
  w.cancel("r2");
  ASSERT_TEXT(w.settled(), "r2 TIMED_OUT");
  ASSERT_TEXT(w.last.settled[0].reply.obstacles(0).guest(), "a");
  ASSERT_TEXT(w.told(), "timed-out dongle b@h1\n");
  ASSERT_OK(w.cancel("r2"));
  ASSERT_OK(w.cancel("r1"));  // too late: it was granted
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.holder("dongle"), "a@h1 1 granted");
}
END_TEST

START_TEST(the_destination_of_a_migration_goes_before_all) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "web@h1", {"dongle"});
  w.acquire("other", "db@h1", {"dongle"}, {.priority = 100});
  ASSERT_QUEUED(w.acquire("res", "web@h2", {"dongle"}, {.reservation = true, .start = 2}));
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
  ASSERT_TEXT(w.queue("dongle"), "res other");
  w.release("web@h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 fencing");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "res OK dongle 2");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 2 granted");
  w.release("web@h1");  // the source's second hook
  ASSERT_TEXT(w.holder("dongle"), "web@h2 2 granted");
}
END_TEST

START_TEST(a_cancelled_migration_drops_the_reservation) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "web@h1", {"dongle"});
  w.acquire("res", "web@h2", {"dongle"}, {.reservation = true, .start = 2});
  w.release("web@h2", {}, 2);
  ASSERT_TEXT(w.settled(), "res REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
  ASSERT_TEXT(w.queue("dongle"), "");
}
END_TEST

START_TEST(a_reservation_without_the_guests_own_lease_is_a_request_like_others) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "web@h1", {"dongle"});
  w.acquire("r2", "db@h1", {"dongle"});
  w.acquire("res", "cheat@h2", {"dongle"}, {.reservation = true});
  ASSERT_TEXT(w.queue("dongle"), "r2 res");
}
END_TEST

START_TEST(the_end_that_was_asked_for_moves_along) {
  World w = two_hosts_one_dongle();
  w.acquire("r1", "web@h1", {"dongle"}, {.duration_s = 600});
  w.now_unix_s += 100;
  w.acquire("res", "web@h2", {"dongle"}, {.reservation = true, .start = 2});
  w.release("web@h1");
  w.fenced("dongle", 1, "h1");
  ck_assert_uint_eq(w.lease("dongle").until_unix_s(), w.now_unix_s + 500);
}
END_TEST

START_TEST(policy_says_who_may_ask) {
  World w = two_hosts_one_dongle();
  record::Policy policy;
  policy.add_guests("web");
  policy.add_guests(uuid_of("db"));
  w.plug("dongle", "h1", {.policy = policy});
  ASSERT_REFUSED(w.acquire("r1", "mail@h1", {"dongle"}));
  ck_assert(w.last.changes.empty());
  ASSERT_OK(w.acquire("r2", "web@h1", {"dongle"}));
  ASSERT_QUEUED(w.acquire("r3", "db@h1", {"dongle"}));
  // Whoever waits while the policy changes against them waits in vain.
  policy.clear_guests();
  policy.add_guests("web");
  w.plug("dongle", "h1", {.policy = policy});
  ASSERT_TEXT(w.settled(), "r3 REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
}
END_TEST

START_TEST(policy_bounds_how_long) {
  World w = two_hosts_one_dongle();
  record::Policy policy;
  policy.set_until_max_s(3600);
  w.plug("dongle", "h1", {.policy = policy});
  ASSERT_REFUSED(w.acquire("r1", "web@h1", {"dongle"}, {.duration_s = 3601}));
  ASSERT_OK(w.acquire("r2", "web@h1", {"dongle"}));
  // Who asks for no end gets the longest.
  ck_assert_uint_eq(w.lease("dongle").until_unix_s(), w.now_unix_s + 3600);
}
END_TEST

START_TEST(policy_demands_a_rung_that_can_hold_the_kind) {
  World w;
  record::Policy kernel;
  kernel.set_min_rung(record::RUNG_KERNEL);
  record::Policy relay;
  relay.set_min_rung(record::RUNG_RELAY);
  w.rungs = {record::RUNG_ADMISSION, record::RUNG_RELAY};
  w.host("h1");
  w.plug("usb", "h1", {.kind = record::DEVICE_KIND_USB, .policy = relay});
  ASSERT_REFUSED(w.acquire("r1", "a@h1", {"usb"}));  // a relay cannot hold a device on the host's own bus
  w.plug("net", "h1", {.kind = record::DEVICE_KIND_ENDPOINT, .policy = relay});
  ASSERT_OK(w.acquire("r2", "a@h1", {"net"}));
  w.rungs = {record::RUNG_ADMISSION, record::RUNG_RELAY, record::RUNG_UNBIND};
  w.host("h1");
  ASSERT_OK(w.acquire("r3", "a@h1", {"usb"}));  // unbind is stronger than what is demanded
  w.plug("net2", "h1", {.kind = record::DEVICE_KIND_ENDPOINT, .policy = kernel});
  ASSERT_REFUSED(w.acquire("r4", "a@h1", {"net2"}));  // and neither it nor the kernel can hold an endpoint
}
END_TEST

START_TEST(a_device_that_appears_at_a_weak_home_is_granted_to_nobody) {
  World w;
  record::Policy policy;
  policy.set_min_rung(record::RUNG_QEMU);
  w.rungs = {record::RUNG_ADMISSION, record::RUNG_RELAY, record::RUNG_QEMU};
  w.host("strong");
  w.rungs = {record::RUNG_ADMISSION};
  w.host("weak");
  w.unplug("dongle", "strong", {.policy = policy});
  ASSERT_QUEUED(w.acquire("r1", "a@strong", {"dongle"}));
  w.plug("dongle", "weak", {.policy = policy});
  ASSERT_TEXT(w.holder("dongle"), "free");
  w.unplug("dongle", "weak", {.policy = policy});
  w.plug("dongle", "strong", {.counter = 2, .policy = policy});
  ASSERT_TEXT(w.settled(), "r1 OK dongle 1");
}
END_TEST

START_TEST(a_device_on_a_bus_is_for_the_guests_of_its_host) {
  World w;
  w.host("h1");
  w.host("h2");
  const Plug usb{.kind = record::DEVICE_KIND_USB};
  w.plug("stick", "h1", usb);
  ASSERT_REFUSED(w.acquire("r1", "far@h2", {"stick"}));
  ck_assert(w.last.reply.status().message().find("the USB bus of h1, and guest far runs on h2") != std::string::npos);
  ASSERT_OK(w.acquire("r2", "near@h1", {"stick"}));
}
END_TEST

START_TEST(who_cannot_be_reached_keeps_nobody_waiting) {
  World w;
  w.host("h1");
  w.host("h2");
  const Plug usb{.kind = record::DEVICE_KIND_USB};
  w.unplug("stick", "h1", usb);
  ASSERT_QUEUED(w.acquire("r1", "far@h2", {"stick"}));
  ASSERT_QUEUED(w.acquire("r2", "near@h1", {"stick"}));
  w.plug("stick", "h1", usb);
  ASSERT_TEXT(w.settled(), "r2 OK stick 1");
  // Carried over, it is the other one's.
  w.unplug("stick", "h1", usb);
  ASSERT_OK(w.fenced("stick", 1, "h1"));
  w.plug("stick", "h2", usb);
  ASSERT_TEXT(w.settled(), "r1 OK stick 2");
}
END_TEST

START_TEST(the_queue_is_bounded) {
  World w = two_hosts_one_dongle();
  w.acquire("holder", "a@h1", {"dongle"});
  for (std::size_t i = 0; i < kRequestsMax; ++i)
    ASSERT_QUEUED(w.acquire("r" + std::to_string(i), "b@h1", {"dongle"}, {.start = static_cast<int>(i)}));
  ck_assert_int_eq(w.acquire("one-more", "c@h1", {"dongle"}), command::CODE_UNAVAILABLE);
  ck_assert(w.last.changes.empty());
  ASSERT_QUEUED(w.acquire("r7", "b@h1", {"dongle"}, {.start = 7}));
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "r0 OK dongle 2");
}
END_TEST

}  // namespace

int main() {
  return run_suite("queue", {a_free_device_is_granted_at_once,
                             without_a_wait_it_is_refused_and_told_who_is_in_the_way,
                             a_device_that_nobody_knows_is_not_found,
                             a_start_of_an_unknown_or_earlier_boot_is_refused,
                             the_queue_is_first_in_first_out,
                             a_greater_priority_goes_first,
                             a_set_is_granted_whole_or_not_at_all,
                             the_lengths_of_all_queues_are_those_of_each,
                             a_waiting_set_is_not_starved_by_requests_for_its_parts,
                             a_set_with_an_absent_device_blocks_nobody,
                             two_sets_in_opposite_order_do_not_deadlock,
                             a_start_that_holds_a_part_waits_only_for_the_rest,
                             two_requests_of_one_start_for_one_device_are_both_answered,
                             a_repeat_gets_the_same_grant,
                             a_repeat_keeps_its_place,
                             a_repeat_after_the_end_is_no_new_request,
                             a_request_id_belongs_to_one_start_and_one_set,
                             cancel_ends_a_waiting_request_only,
                             the_destination_of_a_migration_goes_before_all,
                             a_cancelled_migration_drops_the_reservation,
                             a_reservation_without_the_guests_own_lease_is_a_request_like_others,
                             the_end_that_was_asked_for_moves_along,
                             policy_says_who_may_ask,
                             policy_bounds_how_long,
                             policy_demands_a_rung_that_can_hold_the_kind,
                             a_device_that_appears_at_a_weak_home_is_granted_to_nobody,
                             a_device_on_a_bus_is_for_the_guests_of_its_host,
                             who_cannot_be_reached_keeps_nobody_waiting,
                             the_queue_is_bounded});
}
