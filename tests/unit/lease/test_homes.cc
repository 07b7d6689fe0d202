// What homes and hosts say, and what their end means: instances, conflicts, reboots, floors, absence.
#include <set>
#include <string>

#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

record::Policy roaming() {
  record::Policy policy;
  policy.set_roams(true);
  return policy;
}

// web@h2 has the dongle at h1 under token 1.
World leased(const Plug& how = {}) {
  World w;
  w.host("h1");
  w.host("h2");
  w.host("h3");
  w.plug("dongle", "h1", how);
  w.acquire("r1", "web@h2", {"dongle"});
  w.told();
  return w;
}

bool claimed_at(const World& w, const std::string& device, const std::string& host) {
  for (const auto& home : w.device(device).homes()) {
    if (home.instance().host_id() == host) return home.present();
  }
  return false;
}

// --- instances -------------------------------------------------------------------------------------

START_TEST(a_replug_ends_the_lease_and_passes_nothing_on) {
  World w = leased();
  w.acquire("r2", "db@h2", {"dongle"});
  ASSERT_OK(w.plug("dongle", "h1", {.counter = 2}));
  ASSERT_TEXT(w.told(),
              "queued dongle db@h2\n"
              "present dongle at h1\n"
              "instance-ended dongle web@h2 token 1\n"
              "granted dongle db@h2 token 2\n");
  ck_assert_uint_eq(w.lease("dongle").instance().counter(), 2);
}
END_TEST

START_TEST(absence_is_not_confirmation) {
  World w = leased();
  w.acquire("r2", "db@h2", {"dongle"});
  w.unplug("dongle", "h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  // Back with the same instance: still to be confirmed.
  w.plug("dongle", "h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "db@h2 2 granted");
}
END_TEST

START_TEST(an_absent_device_is_granted_when_it_appears) {
  World w;
  w.host("h1");
  w.unplug("dongle", "h1");
  ck_assert_int_eq(availability(w.state(), w.device("dongle")) == Availability::kAbsent, 1);
  ASSERT_QUEUED(w.acquire("r1", "web@h1", {"dongle"}));
  ASSERT_TEXT(w.last.reply.obstacles(0).guest(), "");
  w.plug("dongle", "h1");
  ASSERT_TEXT(w.settled(), "r1 OK dongle 1");
}
END_TEST

START_TEST(refused_calls_are_on_record_and_change_nothing) {
  World w = leased({.counter = 5});
  command::Command command;
  command::NoteRefusals& c = *command.mutable_note_refusals();
  c.set_device("dongle");
  c.set_host_id("h1");
  ck_assert_int_eq(w.apply(command).status().code(), command::CODE_BAD_REQUEST);  // none
  c.set_calls(7);
  const std::string before = w.holder("dongle");
  ck_assert_int_eq(w.apply(command).status().code(), command::CODE_OK);
  ck_assert_int_eq(w.last.events.size(), 1);
  ASSERT_TEXT(w.last.events[0].kind(), "refused");
  ASSERT_TEXT(w.last.events[0].host(), "h1");
  ASSERT_TEXT(w.holder("dongle"), before);
  c.set_host_id("h9");  // no home of it
  ck_assert_int_eq(w.apply(command).status().code(), command::CODE_OK);
  ck_assert(w.last.events.empty());
}
END_TEST

START_TEST(an_older_instance_is_refused_whole) {
  World w = leased({.counter = 5});
  const auto before = entries_of(w.state());
  ASSERT_REFUSED(w.plug("dongle", "h1", {.counter = 4, .policy = roaming()}));
  ASSERT_REFUSED(w.unplug("dongle", "h1", {.counter = 4}));
  ASSERT_REFUSED(w.plug("dongle", "h1", {.counter = 9, .boot = 2}));  // of a boot that did not register
  ASSERT_REFUSED(w.plug("phone", "h9"));
  ck_assert(w.last.changes.empty());
  ck_assert(entries_of(w.state()) == before);
}
END_TEST

START_TEST(a_roaming_device_moves_when_its_old_home_lets_go) {
  World w = leased({.policy = roaming()});
  w.acquire("r2", "db@h2", {"dongle"});
  w.told();
  // Two live homes claim it: shown, and nobody gets anything.
  w.plug("dongle", "h3", {.policy = roaming()});
  ASSERT_TEXT(w.told(), "present dongle at h3\nconflict dongle web@h2 token 1\n");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.unplug("dongle", "h1", {.policy = roaming()});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  // Seen again at its new home, now that the old one has let go.
  w.plug("dongle", "h3", {.policy = roaming()});
  ASSERT_TEXT(w.holder("dongle"), "db@h2 2 granted");
  ASSERT_TEXT(w.lease("dongle").instance().host_id(), "h3");
}
END_TEST

START_TEST(a_roaming_device_moves_away_from_a_home_that_is_gone) {
  World w = leased({.policy = roaming()});
  w.acquire("r2", "db@h2", {"dongle"});
  w.host_gone("h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.plug("dongle", "h3", {.policy = roaming()});
  ASSERT_TEXT(w.settled(), "r2 OK dongle 2");
  ASSERT_TEXT(w.lease("dongle").instance().host_id(), "h3");
  // The old home comes back and has it not: no conflict.
  w.host("h1", 1, {{.device = "dongle", .armed = 1, .fenced = 0}});
  w.unplug("dongle", "h1", {.policy = roaming()});
  ASSERT_TEXT(w.holder("dongle"), "db@h2 2 granted");
}
END_TEST

START_TEST(an_old_report_cannot_take_a_lease_from_a_home_that_came_back) {
  World w = leased({.policy = roaming()});
  w.host_gone("h1");
  w.host("h1", 1, {{.device = "dongle", .armed = 1, .fenced = 0}});
  // h1 renews its lease from here on. That it had not reported the device again yet does not mean that it let go.
  w.plug("dongle", "h3", {.policy = roaming()});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.unplug("dongle", "h3", {.policy = roaming()});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
}
END_TEST

START_TEST(a_device_that_does_not_roam_stays_where_it_was_armed) {
  World w = leased();
  w.host_gone("h1");
  w.plug("dongle", "h3");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.unplug("dongle", "h3");
  w.plug("dongle", "h3", {.counter = 2});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
  w.declare_dead("h1");
  ASSERT_TEXT(w.holder("dongle"), "free");
  ASSERT_OK(w.acquire("r2", "db@h2", {"dongle"}));
}
END_TEST

START_TEST(a_conflict_is_granted_to_nobody) {
  World w;
  w.host("h1");
  w.host("h3");
  w.plug("dongle", "h1", {.policy = roaming()});
  w.plug("dongle", "h3", {.policy = roaming()});
  ck_assert(availability(w.state(), w.device("dongle")) == Availability::kConflict);
  ASSERT_QUEUED(w.acquire("r1", "web@h1", {"dongle"}));
  w.unplug("dongle", "h1", {.policy = roaming()});
  ASSERT_TEXT(w.settled(), "r1 OK dongle 1");
  ASSERT_TEXT(w.lease("dongle").instance().host_id(), "h3");
}
END_TEST

START_TEST(a_forgotten_device_is_fenced_and_its_tokens_go_on) {
  World w = leased();
  w.forget("dongle", "h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  // Its home has still to prove the end of the stream, and must know where.
  ck_assert_int_eq(w.device("dongle").homes_size(), 1);
  ck_assert(!w.device("dongle").homes(0).present());
  w.forget("dongle", "h1");
  ck_assert(w.last.changes.empty());
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "free");
  w.forget("dongle", "h1");
  ck_assert_int_eq(w.device("dongle").homes_size(), 0);
  w.forget("dongle", "h1");
  w.forget("phone", "h1");
  ck_assert(w.last.changes.empty());
  w.plug("dongle", "h1", {.counter = 2});
  ASSERT_OK(w.acquire("r2", "db@h2", {"dongle"}));
  ck_assert_uint_eq(w.last.reply.grants(0).token(), 2);
}
END_TEST

START_TEST(a_device_has_at_most_sixteen_homes) {
  World w;
  for (int i = 0; i < 17; ++i) w.host("n" + std::to_string(i));
  for (int i = 0; i < 16; ++i) ASSERT_OK(w.unplug("dongle", "n" + std::to_string(i)));
  ASSERT_REFUSED(w.plug("dongle", "n16", {.policy = roaming()}));
  ck_assert(w.last.changes.empty());
  ck_assert(!w.device("dongle").policy().roams());
}
END_TEST

// --- hosts -----------------------------------------------------------------------------------------

START_TEST(a_restart_of_the_daemon_changes_nothing) {
  World w = leased();
  ASSERT_OK(w.host("h1", 1, {{.device = "dongle", .armed = 1, .fenced = 0}}));
  ck_assert(w.last.changes.empty());
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 granted");
}
END_TEST

START_TEST(a_reboot_of_the_home_ends_a_usb_instance) {
  World w;
  w.host("h1");
  w.plug("dongle", "h1", {.kind = record::DEVICE_KIND_USB});
  ASSERT_OK(w.acquire("r1", "web@h1", {"dongle"}));
  w.told();
  w.host("h1", 2, {{.device = "dongle", .armed = 1, .fenced = 0}});
  ASSERT_TEXT(w.told(), "host-rebooted at h1\ninstance-ended dongle web@h1 token 1\n");
  ck_assert(!claimed_at(w, "dongle", "h1"));
  w.plug("dongle", "h1", {.counter = 2, .boot = 2, .kind = record::DEVICE_KIND_USB});
  ASSERT_OK(w.acquire("r2", "db@h1", {"dongle"}, {.boot = 2}));
  ck_assert_uint_eq(w.lease("dongle").token(), 2);
  ASSERT_REFUSED(w.acquire("r1", "web@h1", {"dongle"}, {.boot = 2}));  // the ended request is remembered
}
END_TEST

START_TEST(a_reboot_of_the_home_does_not_end_a_stream_to_an_endpoint) {
  const Plug endpoint{.kind = record::DEVICE_KIND_ENDPOINT};
  World w = leased(endpoint);
  w.host("h1", 2, {{.device = "dongle", .armed = 1, .fenced = 0}});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  // Confirmed for the instance of the earlier boot …
  World v = w;
  ASSERT_OK(v.fenced("dongle", 1, "h1"));
  ASSERT_TEXT(v.holder("dongle"), "free");
  // … or a fresh stream is a new instance.
  w.plug("dongle", "h1", {.counter = 2, .boot = 2, .kind = record::DEVICE_KIND_ENDPOINT});
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(a_reboot_of_the_guests_host_fences_its_leases) {
  World w = leased();
  w.acquire("waits", "db@h2", {"dongle"});
  w.host("h2", 2);
  ASSERT_TEXT(w.settled(), "waits REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(an_earlier_boot_cannot_come_back) {
  World w = leased();
  w.host("h1", 2);
  w.plug("dongle", "h1", {.counter = 2, .boot = 2});
  w.acquire("r2", "db@h2", {"dongle"});
  const auto before = entries_of(w.state());
  // A registration that was under way for a long time: it must not end what the present boot has.
  ASSERT_REFUSED(w.host("h1", 1));
  ck_assert(entries_of(w.state()) == before);
  ASSERT_TEXT(w.holder("dongle"), "db@h2 2 granted");
}
END_TEST

START_TEST(another_machine_under_the_same_host_id_is_refused) {
  World w = leased();
  const auto before = entries_of(w.state());
  ASSERT_REFUSED(w.host("h1", 2, {}, true, "clone"));  // not a reboot: the first machine runs on
  ASSERT_REFUSED(w.host("h1", 1, {}, true, "clone"));  // cloned while it ran
  ck_assert(entries_of(w.state()) == before);
  w.declare_dead("h1");
  ASSERT_OK(w.host("h1", 2, {}, true, "replacement"));
}
END_TEST

START_TEST(a_gone_host_loses_what_its_guests_have_elsewhere) {
  World w = leased();
  w.plug("phone", "h2");
  w.acquire("r2", "db@h3", {"phone"});
  w.acquire("r3", "web@h2", {"phone"});
  w.told();
  w.host_gone("h2");
  ASSERT_TEXT(w.settled(), "r3 REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ASSERT_TEXT(w.holder("phone"), "db@h3 1 granted");  // silence is not confirmation
  ASSERT_TEXT(w.told(), "host-gone at h2\ncancelled phone web@h2\nfencing dongle web@h2 token 1\n");
  w.host_gone("h2");
  ck_assert(w.last.changes.empty());
  w.host_gone("h1", 7);  // another boot
  ck_assert(w.last.changes.empty());
}
END_TEST

START_TEST(a_local_guest_outlives_a_short_absence_of_its_host) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.acquire("r1", "web@h1", {"dongle"});
  w.acquire("r2", "db@h2", {"dongle"});
  w.host_gone("h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
  w.host("h1", 1, {{.device = "dongle", .armed = 1, .fenced = 0}});
  w.plug("dongle", "h1");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
  // Or its deadline passed meanwhile, and its home says so.
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "db@h2 2 granted");
}
END_TEST

START_TEST(a_gone_host_must_register_again_before_anything) {
  World w = leased();
  w.plug("phone", "h2");
  w.host_gone("h2");
  w.told();
  ASSERT_REFUSED(w.plug("phone", "h2", {.counter = 2}));
  ASSERT_REFUSED(w.acquire("r9", "db@h2", {"phone"}));
  ASSERT_QUEUED(w.acquire("r2", "db@h3", {"phone"}));  // its home cannot enforce anything now
  w.host("h2");
  ASSERT_TEXT(w.holder("phone"), "free");  // it may be another instance by now
  w.plug("phone", "h2", {.counter = 2});
  ASSERT_TEXT(w.settled(), "r2 OK phone 1");
}
END_TEST

START_TEST(declare_dead_ends_instances_and_bars_the_boot) {
  World w = leased();
  w.plug("phone", "h3");
  w.acquire("r2", "a@h1", {"phone"});
  w.acquire("r3", "b@h1", {"dongle"});
  w.acquire("r4", "c@h2", {"dongle"});
  ck_assert_int_eq(w.declare_dead("h9"), command::CODE_NOT_FOUND);
  ASSERT_REFUSED(w.declare_dead("h1", boot_of("h1", 7)));
  ASSERT_OK(w.declare_dead("h1", boot_of("h1", 1)));
  ASSERT_TEXT(w.settled(), "r3 REFUSED");
  ASSERT_TEXT(w.holder("dongle"), "free");
  ASSERT_TEXT(w.holder("phone"), "a@h1 1 fencing");  // at a live home: that one confirms
  ASSERT_TEXT(w.queue("dongle"), "r4");              // waits for the device to appear somewhere
  ASSERT_OK(w.declare_dead("h1"));
  ck_assert(w.last.changes.empty());
  ASSERT_REFUSED(w.host("h1", 1));
  ASSERT_REFUSED(w.plug("dongle", "h1", {.counter = 2}));
  ASSERT_OK(w.host("h1", 2));
  ASSERT_OK(w.plug("dongle", "h1", {.counter = 2, .boot = 2}));
  ASSERT_TEXT(w.settled(), "r4 OK dongle 2");
  ASSERT_REFUSED(w.host("h1", 1));
}
END_TEST

START_TEST(declare_dead_also_ends_what_an_earlier_boot_had) {
  World w = leased({.kind = record::DEVICE_KIND_ENDPOINT});
  w.host("h1", 2);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  w.declare_dead("h1");
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(barred_boots_are_bounded) {
  World w;
  for (int boot = 1; boot <= static_cast<int>(kBarredBootIdsMax) + 5; ++boot) {
    ASSERT_OK(w.host("h1", boot));
    w.declare_dead("h1");
  }
  const record::Host& host = w.state().hosts.at("h1");
  ck_assert_int_eq(host.barred_boot_ids_size(), static_cast<int>(kBarredBootIdsMax));
  ASSERT_TEXT(host.barred_boot_ids(host.barred_boot_ids_size() - 1), boot_of("h1", 69));
}
END_TEST

// --- floors ----------------------------------------------------------------------------------------

START_TEST(a_home_with_a_new_disk_is_supplied_with_floors) {
  World w = leased();
  w.plug("phone", "h1");
  w.acquire("r2", "web@h2", {"phone"});
  w.release("web@h2", {"phone"});
  w.fenced("phone", 1, "h1");
  w.plug("probe", "h3");
  ASSERT_OK(w.host("h1", 1, {}, false));
  // What is leased there must be fenced, and that confirmation is still to come.
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ck_assert_int_eq(w.last.reply.floors_size(), 2);
  ASSERT_TEXT(w.last.reply.floors(0).device(), "dongle");
  ck_assert_uint_eq(w.last.reply.floors(0).fenced(), 0);
  ASSERT_TEXT(w.last.reply.floors(1).device(), "phone");
  ck_assert_uint_eq(w.last.reply.floors(1).fenced(), 1);
}
END_TEST

START_TEST(a_floor_above_the_store_stops_all_grants) {
  World w = leased();
  w.plug("phone", "h1");
  w.acquire("waits", "a@h2", {"dongle"});
  ASSERT_OK(w.host("h3", 1, {{.device = "phone", .armed = 9, .fenced = 9}}));
  ck_assert(!w.state().meta.behind().empty());
  ck_assert_int_eq(w.acquire("r2", "db@h2", {"phone"}), command::CODE_UNAVAILABLE);
  ck_assert(w.last.reply.status().message().find("repair --new-epoch") != std::string::npos);
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.holder("dongle"), "free");  // nothing is granted, not even to who waits
  ASSERT_REFUSED(w.new_epoch(0));
  ASSERT_OK(w.new_epoch(5));
  ASSERT_TEXT(w.settled(), "waits OK dongle 5368709121");
  ASSERT_OK(w.acquire("r2", "db@h2", {"phone"}));
  ck_assert_uint_eq(w.last.reply.grants(0).token(), (5ULL << kTokenCounterBits) + 1);
}
END_TEST

START_TEST(a_new_coordinator_grants_nothing_at_a_home_that_has_not_spoken) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.core = Core(State(w.state()), {"h2"});
  ck_assert_int_eq(w.acquire("r1", "web@h2", {"dongle"}, {.wait_ms = 0}), command::CODE_UNAVAILABLE);
  ck_assert(w.last.reply.status().message().find("h1") != std::string::npos);
  ck_assert_int_eq(w.last.reply.obstacles_size(), 0);
  ASSERT_QUEUED(w.acquire("r2", "web@h2", {"dongle"}));
  ASSERT_OK(w.host("h1"));
  ASSERT_TEXT(w.settled(), "r2 OK dongle 1");
}
END_TEST

// What a store that went back in time under a coordinator would otherwise do: token 1 was another guest's there.
START_TEST(a_home_that_has_not_spoken_may_know_more_than_the_store) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.core = Core(State(w.state()), std::set<std::string>());
  ASSERT_QUEUED(w.acquire("r1", "web@h2", {"dongle"}));
  ASSERT_OK(w.host("h1", 1, {{.device = "dongle", .armed = 1}}));
  ck_assert(!w.state().meta.behind().empty());
  ASSERT_TEXT(w.queue("dongle"), "r1");
  ck_assert_uint_eq(w.device("dongle").last_token(), 1);
}
END_TEST

START_TEST(whoever_waits_for_a_home_to_speak_keeps_his_place) {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.plug("phone", "h2");
  w.core = Core(State(w.state()), {"h2"});
  ASSERT_QUEUED(w.acquire("both", "web@h2", {"dongle", "phone"}));
  ASSERT_QUEUED(w.acquire("later", "db@h2", {"phone"}));
  ASSERT_OK(w.host("h1"));
  ASSERT_TEXT(w.settled(), "both OK dongle 1 phone 1");
  ASSERT_TEXT(w.queue("phone"), "later");
}
END_TEST

START_TEST(a_floor_of_an_unknown_device_also_proves_it) {
  World w = leased();
  w.host("h3", 1, {{.device = "probe", .armed = 3, .fenced = 3}});
  ck_assert(!w.state().meta.behind().empty());
  ck_assert_uint_eq(w.state().meta.floor_max(), 3);
}
END_TEST

START_TEST(one_repair_is_enough_for_homes_that_come_later) {
  World w = leased();
  w.host("h3", 1, {{.device = "dongle", .armed = 4, .fenced = 4}});
  w.new_epoch(1);
  // It has seen even more of the lost time, but nothing above the new epoch.
  w.host("h2", 1, {{.device = "dongle", .armed = 40, .fenced = 40}, {.device = "probe", .armed = 7, .fenced = 7}});
  ASSERT_TEXT(w.state().meta.behind(), "");
  // But a token of this epoch that the store does not know proves that it went back again.
  w.host("h2", 1,
         {{.device = "dongle", .armed = (1ULL << kTokenCounterBits) + 1, .fenced = (1ULL << kTokenCounterBits) + 1}});
  ck_assert(!w.state().meta.behind().empty());
}
END_TEST

START_TEST(repairing_twice_does_not_repeat_tokens) {
  World w = leased();
  w.fenced("dongle", 1, "h1");
  w.new_epoch(10);
  w.acquire("r2", "web@h2", {"dongle"});
  const std::uint64_t second = w.lease("dongle").token();
  ASSERT_REFUSED(w.new_epoch(10));
  ASSERT_REFUSED(w.new_epoch(9));
  ck_assert(w.last.changes.empty());
  ASSERT_OK(w.new_epoch(11));
  // What the store says of leases may be as old as the store: all are fenced first.
  ASSERT_TEXT(w.holder("dongle"), "web@h2 " + std::to_string(second) + " fencing");
  w.fenced("dongle", second, "h1");
  w.acquire("r3", "web@h2", {"dongle"});
  ck_assert_uint_gt(w.lease("dongle").token(), second);
  ck_assert_uint_eq(w.lease("dongle").token(), (11ULL << kTokenCounterBits) + 1);
}
END_TEST

START_TEST(the_new_epoch_is_above_every_floor_that_was_shown) {
  World w = leased();
  w.host("h3", 1, {{.device = "probe", .armed = 7ULL << kTokenCounterBits, .fenced = 7ULL << kTokenCounterBits}});
  ASSERT_REFUSED(w.new_epoch(7));
  ASSERT_OK(w.new_epoch(8));
}
END_TEST

START_TEST(a_token_never_wraps_around) {
  World w = leased();
  ck_assert_int_eq(w.host("h3", 1, {{.device = "dongle", .armed = UINT64_MAX, .fenced = UINT64_MAX}}),
                   command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.new_epoch(kEpochMax + 1), command::CODE_BAD_REQUEST);
  w.host("h3", 1, {{.device = "dongle", .armed = kTokenMax - (1ULL << kTokenCounterBits), .fenced = 0}});
  ASSERT_OK(w.new_epoch(kEpochMax));
  w.fenced("dongle", kTokenMax - (1ULL << kTokenCounterBits), "h3");
  ASSERT_OK(w.acquire("r2", "db@h2", {"dongle"}));
  ck_assert_uint_eq(w.last.reply.grants(0).token(), (kEpochMax << kTokenCounterBits) + 1);
}
END_TEST

START_TEST(what_is_armed_and_unknown_is_fenced_before_anybody_gets_it) {
  World w;
  w.host("h1");
  w.plug("dongle", "h1");
  w.host("h1", 1, {{.device = "dongle", .armed = 6, .fenced = 4, .instance = 1}});
  ASSERT_TEXT(w.holder("dongle"), "@ 6 fencing");
  ck_assert_uint_eq(w.device("dongle").last_token(), 6);
  w.new_epoch(1);
  ASSERT_QUEUED(w.acquire("r1", "web@h1", {"dongle"}));
  // Nobody's lease: no start can touch it, and nobody can extend it.
  w.host_gone("h1", 1);
  w.host("h1", 1, {{.device = "dongle", .armed = 6, .fenced = 4, .instance = 1}});
  ASSERT_OK(w.revoke("dongle", 0));
  ASSERT_REFUSED(w.extend("dongle", 10));
  ASSERT_TEXT(w.holder("dongle"), "@ 6 fencing");
  ck_assert(load(entries_of(w.state())).has_value());
  w.acquire("r2", "web@h1", {"dongle"});
  w.plug("dongle", "h1");
  w.fenced("dongle", 6, "h1");
  ASSERT_TEXT(w.settled(), "r2 OK dongle 1073741825");
}
END_TEST

START_TEST(a_greater_armed_token_replaces_what_the_store_believed) {
  World w = leased();
  // The store is an old copy: since then token 1 ended and token 4 was granted and armed at h3.
  w.plug("dongle", "h3", {.counter = 8});
  w.host("h3", 1, {{.device = "dongle", .armed = 4, .fenced = 2, .instance = 8}});
  ASSERT_TEXT(w.holder("dongle"), "@ 4 fencing");
  // And a lesser one changes nothing.
  w.host("h1", 1, {{.device = "dongle", .armed = 3, .fenced = 2}});
  ASSERT_TEXT(w.holder("dongle"), "@ 4 fencing");
  ASSERT_REFUSED(w.fenced("dongle", 4, "h1"));
  w.fenced("dongle", 4, "h3", 8);
  ASSERT_TEXT(w.holder("dongle"), "free");
}
END_TEST

START_TEST(what_a_reboot_or_a_replug_ended_is_not_fenced_again) {
  World w = leased();
  w.plug("dongle", "h1", {.counter = 2});
  ASSERT_TEXT(w.holder("dongle"), "free");
  w.host("h1", 1, {{.device = "dongle", .armed = 1, .fenced = 0, .instance = 1}});
  ASSERT_TEXT(w.holder("dongle"), "free");
  w.host("h1", 2, {{.device = "dongle", .armed = 1, .fenced = 0, .instance = 2}});
  ASSERT_TEXT(w.holder("dongle"), "free");
  ASSERT_REFUSED(w.acquire("r1", "web@h2", {"dongle"}));
}
END_TEST

START_TEST(hosts_and_devices_are_bounded) {
  World w;
  for (std::size_t i = 0; i < kHostsMax; ++i) ASSERT_OK(w.host("n" + std::to_string(i)));
  ASSERT_REFUSED(w.host("one-more"));
  ck_assert(w.last.changes.empty());
  ASSERT_OK(w.host("n5"));
  // All but the last one as a store could hold them: to report each would take minutes.
  ASSERT_OK(w.plug("d0", "n1"));
  State state = w.core.state();
  for (std::size_t i = 1; i + 1 < kDevicesMax; ++i) {
    record::Device& device = state.devices["d" + std::to_string(i)];
    device = state.devices.at("d0");
    device.set_name("d" + std::to_string(i));
  }
  w.core = Core(std::move(state));
  ASSERT_OK(w.plug("last", "n1"));
  ASSERT_REFUSED(w.plug("one-more", "n1"));
  ck_assert(w.last.changes.empty());
  ASSERT_OK(w.plug("d5", "n2"));
}
END_TEST

}  // namespace

int main() {
  return run_suite("homes", {a_replug_ends_the_lease_and_passes_nothing_on,
                             absence_is_not_confirmation,
                             an_absent_device_is_granted_when_it_appears,
                             refused_calls_are_on_record_and_change_nothing,
                             an_older_instance_is_refused_whole,
                             a_roaming_device_moves_when_its_old_home_lets_go,
                             a_roaming_device_moves_away_from_a_home_that_is_gone,
                             an_old_report_cannot_take_a_lease_from_a_home_that_came_back,
                             a_device_that_does_not_roam_stays_where_it_was_armed,
                             a_conflict_is_granted_to_nobody,
                             a_forgotten_device_is_fenced_and_its_tokens_go_on,
                             a_device_has_at_most_sixteen_homes,
                             a_restart_of_the_daemon_changes_nothing,
                             a_reboot_of_the_home_ends_a_usb_instance,
                             a_reboot_of_the_home_does_not_end_a_stream_to_an_endpoint,
                             a_reboot_of_the_guests_host_fences_its_leases,
                             an_earlier_boot_cannot_come_back,
                             another_machine_under_the_same_host_id_is_refused,
                             a_gone_host_loses_what_its_guests_have_elsewhere,
                             a_local_guest_outlives_a_short_absence_of_its_host,
                             a_gone_host_must_register_again_before_anything,
                             declare_dead_ends_instances_and_bars_the_boot,
                             declare_dead_also_ends_what_an_earlier_boot_had,
                             barred_boots_are_bounded,
                             a_home_with_a_new_disk_is_supplied_with_floors,
                             a_floor_above_the_store_stops_all_grants,
                             a_new_coordinator_grants_nothing_at_a_home_that_has_not_spoken,
                             a_home_that_has_not_spoken_may_know_more_than_the_store,
                             whoever_waits_for_a_home_to_speak_keeps_his_place,
                             a_floor_of_an_unknown_device_also_proves_it,
                             one_repair_is_enough_for_homes_that_come_later,
                             repairing_twice_does_not_repeat_tokens,
                             the_new_epoch_is_above_every_floor_that_was_shown,
                             a_token_never_wraps_around,
                             what_is_armed_and_unknown_is_fenced_before_anybody_gets_it,
                             a_greater_armed_token_replaces_what_the_store_believed,
                             what_a_reboot_or_a_replug_ended_is_not_fenced_again,
                             hosts_and_devices_are_bounded});
}
