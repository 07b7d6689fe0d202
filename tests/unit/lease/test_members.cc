// Who belongs to the cluster: founding, joining, leaving, drains, and the restore of a backup.
#include <functional>

#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

// h1 has founded a cluster, and h2 and h3 have joined; web@h2 has the dongle at h1 under token 1.
World three() {
  World w;
  w.host("h1");
  w.found("h1");
  for (const int n : {2, 3}) {
    const std::string host = "h" + std::to_string(n);
    w.add(host, n);
    w.join(host, n, n);
    w.host(host);
  }
  w.plug("dongle", "h1");
  w.acquire("r1", "web@h2", {"dongle"});
  w.told();
  return w;
}

bool says(const World& w, const std::string& text) {
  return w.last.reply.status().message().find(text) != std::string::npos;
}

START_TEST(a_cluster_of_one_needs_no_members) {
  World w;
  ASSERT_OK(w.host("anybody"));
  ASSERT_REFUSED(w.add("h2", 1));
  ck_assert(says(w, "cluster init"));
  ASSERT_OK(w.found("anybody"));
  ck_assert_int_eq(w.standing("anybody"), record::STANDING_JOINED);
  ASSERT_REFUSED(w.found("h2", 2));
  ASSERT_OK(w.found("anybody"));  // a repeat
  ASSERT_TEXT(w.told(), "founded at anybody\n");
}
END_TEST

START_TEST(a_stranger_may_not_register) {
  World w = three();
  ASSERT_REFUSED(w.host("h4"));
  ck_assert(says(w, "not a host of this cluster"));
  ck_assert(!w.state().hosts.contains("h4"));
  ASSERT_OK(w.host("h2"));
}
END_TEST

START_TEST(a_token_lets_one_key_in_once) {
  World w = three();
  ASSERT_OK(w.add("h4", 4));
  ASSERT_REFUSED(w.join("h4", 4, 4, /*secret=*/5));
  ck_assert(says(w, "not known here"));
  ASSERT_REFUSED(w.join("h5", 4, 4));
  ck_assert(says(w, "for host h4"));
  ck_assert_int_eq(w.standing("h4"), record::STANDING_UNSPECIFIED);
  ASSERT_OK(w.join("h4", 4, 4));
  ck_assert_int_eq(w.standing("h4"), record::STANDING_JOINED);
  ck_assert_int_eq(w.state().members.at("h4").store().role(), record::STORE_ROLE_NONE);
  ASSERT_OK(w.join("h4", 4, 4));  // the answer was lost
  ck_assert(w.last.changes.empty());
  ASSERT_REFUSED(w.join("h4", 4, 7));  // somebody else with the same token
  ck_assert(says(w, "used already"));
  ASSERT_TEXT(w.told(), "invited at h4\njoined at h4\n");
}
END_TEST

START_TEST(a_token_expires) {
  World w = three();
  ASSERT_OK(w.add("h4", 4, 60));
  w.now_unix_s += 60;
  ASSERT_REFUSED(w.join("h4", 4, 4));
  ck_assert(says(w, "expired"));
  ck_assert_int_eq(w.add("h4", 4, kJoinTokenMaxS + 1), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.add("h4", 4, 0), command::CODE_BAD_REQUEST);
}
END_TEST

START_TEST(a_new_token_replaces_the_one_before) {
  World w = three();
  w.add("h4", 4);
  ASSERT_OK(w.add("h4", 5));
  ASSERT_REFUSED(w.join("h4", 4, 4));
  ASSERT_OK(w.join("h4", 5, 4));
  ASSERT_REFUSED(w.add("h4", 6));
  ck_assert(says(w, "already"));
}
END_TEST

START_TEST(open_tokens_are_bounded) {
  World w = three();
  const auto add = [&](std::size_t n) {
    command::Command command;
    record::JoinToken& t = *command.mutable_add_host()->mutable_token();
    t.set_id("00000000000000" + std::to_string(10 + n));
    t.set_host_id("n" + std::to_string(n));
    t.set_secret_sha256(World::hex(1, 64));
    t.set_expires_unix_s(w.now_unix_s + 100);
    return w.apply(command).status().code();
  };
  w.now_unix_s += kJoinTokenMaxS;  // those of three() are over
  for (std::size_t n = 0; n < kJoinTokensMax; ++n) ASSERT_OK(add(n));
  ck_assert_int_eq(add(kJoinTokensMax), command::CODE_UNAVAILABLE);
  w.now_unix_s += 100;
  ASSERT_OK(add(kJoinTokensMax));
  ck_assert_uint_eq(w.state().tokens.size(), 1);
}
END_TEST

START_TEST(used_tokens_make_room) {
  World w = three();
  const int joins = static_cast<int>(kJoinTokensMax) + 5;
  for (int n = 0; n < joins; ++n) {
    ASSERT_OK(w.add("n" + std::to_string(n), 100 + n));
    ASSERT_OK(w.join("n" + std::to_string(n), 100 + n, 100 + n));
  }
  ck_assert_uint_le(w.state().tokens.size(), kJoinTokensMax);
}
END_TEST

START_TEST(founding_frees_what_strangers_waited_for) {
  World w;
  for (const char* host : {"h1", "h2"}) w.host(host);
  for (const char* device : {"dongle", "phone"}) w.plug(device, "h1");
  ASSERT_OK(w.acquire("r1", "db@h1", {"phone"}));
  ck_assert_int_eq(w.acquire("r2", "web@h2", {"dongle", "phone"}), command::CODE_QUEUED);
  ck_assert_int_eq(w.acquire("r3", "mail@h1", {"dongle"}), command::CODE_QUEUED);
  ASSERT_OK(w.found("h1", 1));
  ASSERT_TEXT(w.holder("dongle"), "mail@h1 1 granted");
}
END_TEST

START_TEST(a_removed_guest_host_loses_what_it_held) {
  World w = three();
  w.acquire("r2", "db@h3", {"dongle"});
  w.told();
  ASSERT_OK(w.remove("h2"));
  ck_assert_uint_eq(w.last.reply.leases_left(), 1);
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ck_assert_int_eq(w.standing("h2"), record::STANDING_LEAVING);
  ASSERT_OK(w.host("h2"));  // it may still confirm what it fenced
  ASSERT_REFUSED(w.acquire("r3", "web@h2", {"dongle"}, {.start = 2}));
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.told(),
              "leaving at h2\n"
              "fencing dongle web@h2 token 1\n"
              "fenced dongle web@h2 token 1\n"
              "granted dongle db@h3 token 2\n"
              "removed at h2\n");
  ck_assert_int_eq(w.standing("h2"), record::STANDING_REMOVED);
  ASSERT_REFUSED(w.host("h2"));
  ck_assert(says(w, "was removed"));
}
END_TEST

START_TEST(a_removed_home_must_confirm_or_be_declared_dead) {
  World w = three();
  w.remove("h1");
  // A voter cannot go while it runs a store member.
  ck_assert_int_eq(w.standing("h1"), record::STANDING_JOINED);
  ASSERT_REFUSED(w.store_role("h1", record::STORE_ROLE_NONE));  // the last one
  ASSERT_OK(w.store_role("h2", record::STORE_ROLE_VOTER));
  ASSERT_OK(w.store_role("h1", record::STORE_ROLE_NONE));
  w.host_gone("h1");
  ASSERT_OK(w.remove("h1"));
  ASSERT_TEXT(w.holder("dongle"), "web@h2 1 fencing");
  ck_assert_int_eq(w.standing("h1"), record::STANDING_LEAVING);
  ASSERT_OK(w.declare_dead("h1"));
  ASSERT_TEXT(w.holder("dongle"), "free");
  ck_assert_int_eq(w.standing("h1"), record::STANDING_REMOVED);
  ck_assert_int_eq(w.device("dongle").homes_size(), 0);
  // It may be invited again: its tokens are not forgotten.
  ASSERT_OK(w.add("h1", 1));
  ASSERT_OK(w.join("h1", 1, 9));
  ASSERT_OK(w.host("h1", 2));
  w.plug("dongle", "h1", {.boot = 2});
  w.acquire("r9", "web@h2", {"dongle"}, {.start = 9});
  ASSERT_TEXT(w.holder("dongle"), "web@h2 2 granted");
}
END_TEST

START_TEST(the_last_host_stays) {
  World w;
  w.found("h1");
  w.store_role("h1", record::STORE_ROLE_NONE);
  ASSERT_REFUSED(w.remove("h1"));
  ck_assert_int_eq(w.remove("h9"), command::CODE_NOT_FOUND);
}
END_TEST

START_TEST(five_store_members_at_most) {
  World w;
  w.found("h1");
  for (int n = 2; n <= 7; ++n) {
    w.add("h" + std::to_string(n), n);
    w.join("h" + std::to_string(n), n, n);
  }
  for (int n = 2; n <= 5; ++n) ASSERT_OK(w.store_role("h" + std::to_string(n), record::STORE_ROLE_LEARNER));
  ASSERT_REFUSED(w.store_role("h6", record::STORE_ROLE_LEARNER));
  ASSERT_OK(w.store_role("h5", record::STORE_ROLE_NONE));
  ASSERT_OK(w.store_role("h6", record::STORE_ROLE_LEARNER));
  ASSERT_OK(w.store_role("h6", record::STORE_ROLE_VOTER));
}
END_TEST

START_TEST(a_drained_host_gives_back_and_gets_nothing) {
  World w = three();
  w.plug("hsm", "h2");
  ASSERT_OK(w.acquire("r2", "db@h3", {"hsm"}));
  ASSERT_QUEUED(w.acquire("r3", "web@h2", {"hsm"}));
  w.told();
  ASSERT_OK(w.drain("h2", false, 5'000));
  ck_assert_uint_eq(w.last.reply.leases_left(), 2);
  ASSERT_TEXT(w.told(),
              "draining at h2\n"
              "cancelled hsm web@h2\n"
              "revoking dongle web@h2 token 1\n"
              "revoking hsm db@h3 token 1\n");
  w.grace_over("hsm", 1);
  w.fenced("hsm", 1, "h2");
  ASSERT_QUEUED(w.acquire("r4", "db@h3", {"hsm"}, {.start = 2}));  // nothing new on its devices
  ASSERT_REFUSED(w.acquire("r5", "web@h2", {"dongle"}, {.start = 2}));
  ck_assert(says(w, "being drained"));
  ASSERT_OK(w.host("h2", 2));  // a reboot does not end it
  ck_assert(w.state().hosts.at("h2").draining());
  w.plug("hsm", "h2", {.boot = 2});
  ASSERT_TEXT(w.holder("hsm"), "free");
  ASSERT_OK(w.drain("h2", true));
  ASSERT_TEXT(w.settled(), "r4 OK hsm 2");
  ck_assert_int_eq(w.drain("h9"), command::CODE_NOT_FOUND);
}
END_TEST

// --- restore ---------------------------------------------------------------------------------------

command::Code restore(World& w, bool begin, bool end, const State* from, std::uint64_t epoch = 0) {
  command::Command command;
  command::Restore& c = *command.mutable_restore();
  c.set_begin(begin);
  c.set_end(end);
  c.set_epoch(epoch);
  if (from != nullptr) {
    for (const auto& [name, device] : from->devices) *c.add_devices() = device;
    for (const auto& [id, host] : from->hosts) *c.add_hosts() = host;
  }
  return w.apply(command).status().code();
}

START_TEST(a_restore_fences_what_the_backup_says_is_leased) {
  World old;
  old.host("h1");
  old.plug("dongle", "h1");
  old.plug("hsm", "h1");
  old.acquire("r1", "web@h1", {"dongle"});
  old.host("h3");
  old.declare_dead("h3");

  World w;
  w.host("h2");
  w.plug("phone", "h2");
  ASSERT_OK(w.acquire("r2", "db@h2", {"phone"}));
  ASSERT_REFUSED(restore(w, true, false, &old.state()));  // something is leased
  w.release("db@h2");
  ASSERT_REFUSED(restore(w, false, false, &old.state()));  // never begun
  ASSERT_OK(restore(w, true, false, &old.state()));
  ck_assert_int_eq(w.acquire("r3", "db@h2", {"phone"}, {.start = 2}), command::CODE_UNAVAILABLE);
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 fencing");
  ASSERT_REFUSED(restore(w, false, true, nullptr, 0));  // not a new epoch
  ASSERT_OK(restore(w, false, true, nullptr, 7));
  ck_assert_uint_eq(w.last.reply.leases_left(), 2);
  w.fenced("phone", 1, "h2");
  w.host("h1", 1, {{.device = "dongle", .armed = 1}});
  w.plug("dongle", "h1");
  ASSERT_QUEUED(w.acquire("r4", "db@h2", {"dongle"}, {.start = 2}));
  w.fenced("dongle", 1, "h1");
  ASSERT_TEXT(w.settled(), "r4 OK dongle " + std::to_string((7ULL << kTokenCounterBits) + 1));
  ASSERT_REFUSED(w.host("h3"));  // still barred
}
END_TEST

START_TEST(an_interrupted_restore_begins_again) {
  World old;
  old.host("h1");
  old.plug("dongle", "h1");
  old.acquire("r1", "web@h1", {"dongle"});
  World w;
  w.host("h2");
  ASSERT_OK(restore(w, true, false, &old.state()));
  ASSERT_OK(restore(w, true, false, &old.state()));
  ASSERT_OK(restore(w, false, true, nullptr, 3));
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 fencing");
  ck_assert(w.state().meta.behind().empty());
}
END_TEST

START_TEST(bounds) {
  const auto refused = [](const std::function<void(command::Command&)>& fill, const char* names) {
    World w;
    command::Command command;
    fill(command);
    ck_assert_int_eq(w.apply(command).status().code(), command::CODE_BAD_REQUEST);
    ck_assert_msg(says(w, names), "%s", w.last.reply.status().message().c_str());
  };
  refused([](auto& c) { *c.mutable_found_cluster()->mutable_member() = World::member("-h"); }, "the host");
  refused(
      [](auto& c) {
        record::Member& m = *c.mutable_found_cluster()->mutable_member();
        m = World::member("h1");
        for (int i = 0; i < 9; ++i) m.add_addresses("a:1");
      },
      "the list of addresses");
  refused(
      [](auto& c) {
        record::Member& m = *c.mutable_found_cluster()->mutable_member();
        m = World::member("h1");
        m.set_key_sha256(World::hex(1, 63));
      },
      "the hash of its key");
  refused(
      [](auto& c) {
        record::Member& m = *c.mutable_join()->mutable_member();
        m = World::member("h1");
        c.mutable_join()->set_token_id("ABC");
      },
      "the token's id");
  refused([](auto& c) { c.mutable_add_host()->mutable_token()->set_id(World::hex(1, 16)); }, "the host");
  refused(
      [](auto& c) {
        c.mutable_update_member()->set_host_id("h1");
        c.mutable_update_member()->mutable_store()->set_role(static_cast<record::StoreRole>(9));
      },
      "role");
  refused([](auto& c) { c.mutable_remove_host(); }, "the host");
  refused(
      [](auto& c) {
        c.mutable_drain_host()->set_host_id("h1");
        c.mutable_drain_host()->set_grace_ms(kGraceMaxMs + 1);
      },
      "the grace");
  refused(
      [](auto& c) {
        c.mutable_restore()->set_begin(true);
        c.mutable_restore()->add_devices()->set_name("UPPER");
      },
      "the device name");
  refused([](auto& c) { c.mutable_restore()->set_epoch(kEpochMax + 1); }, "the epoch");
}
END_TEST

// --- certificates: their serial numbers are told apart by one digit ------------------------------------------

command::Code note(World& w, const std::string& host, int serial, bool in_use, std::uint64_t good_for_s = 1'000) {
  command::Command command;
  command::NoteCertificate& c = *command.mutable_note_certificate();
  c.set_host_id(host);
  c.mutable_certificate()->set_serial(World::hex(serial, 32));
  c.mutable_certificate()->set_end_unix_s(w.now_unix_s + good_for_s);
  c.set_in_use(in_use);
  return w.apply(command).status().code();
}

std::string last_digits(const google::protobuf::RepeatedPtrField<record::Certificate>& list) {
  std::string out;
  for (const auto& certificate : list) out += certificate.serial().back();
  return out;
}

// "CERTIFICATES/REVOKED", and " rotate".
std::string certificates(const World& w, const std::string& host) {
  const record::Member& member = w.state().members.at(host);
  return last_digits(member.certificates()) + "/" + last_digits(member.revoked()) + (member.rotate() ? " rotate" : "");
}

START_TEST(a_replaced_certificate_is_revoked_when_the_new_one_is_in_use) {
  World w = three();
  ck_assert_int_eq(note(w, "h2", 1, false), command::CODE_OK);
  command::Command rotate;
  rotate.mutable_rotate_certificates()->set_principal("anna");
  ck_assert_uint_eq(w.apply(rotate).hosts(), 3);
  ASSERT_TEXT(certificates(w, "h2"), "1/ rotate");
  note(w, "h2", 2, false);
  ASSERT_TEXT(certificates(w, "h2"), "12/");
  ASSERT_TEXT(certificates(w, "h3"), "/ rotate");
  // The answer was lost: it asks again, and what nobody got is not to be believed.
  note(w, "h2", 3, false);
  ASSERT_TEXT(certificates(w, "h2"), "13/2");
  ck_assert_int_eq(note(w, "h2", 2, true), command::CODE_NOT_FOUND);
  ck_assert_int_eq(note(w, "h2", 9, true), command::CODE_NOT_FOUND);
  // The old one is good until then.
  note(w, "h2", 1, true);
  ASSERT_TEXT(certificates(w, "h2"), "13/2");
  note(w, "h2", 3, true);
  ASSERT_TEXT(certificates(w, "h2"), "3/21");
  // A repeat, late or not, changes nothing.
  note(w, "h2", 3, true);
  note(w, "h2", 3, false);
  ASSERT_TEXT(certificates(w, "h2"), "3/21");
}
END_TEST

START_TEST(a_removed_host_has_no_certificate_that_is_good) {
  World w = three();
  note(w, "h3", 1, false);
  note(w, "h3", 2, false);
  ck_assert_int_eq(w.remove("h3"), command::CODE_OK);
  ASSERT_TEXT(certificates(w, "h3"), "/12");
  ck_assert_int_eq(note(w, "h3", 3, false), command::CODE_NOT_FOUND);
  // Also when it has joined again.
  w.add("h3", 7);
  ck_assert_int_eq(w.join("h3", 7, 7), command::CODE_OK);
  note(w, "h3", 4, false);
  ASSERT_TEXT(certificates(w, "h3"), "4/12");
}
END_TEST

START_TEST(what_has_ended_by_itself_needs_no_revocation) {
  World w = three();
  note(w, "h2", 1, false, 10);
  note(w, "h2", 2, false, 50);
  note(w, "h2", 2, true);
  ASSERT_TEXT(certificates(w, "h2"), "2/1");
  w.now_unix_s += 60;
  note(w, "h2", 3, false);
  note(w, "h2", 3, true);
  ASSERT_TEXT(certificates(w, "h2"), "3/");
  for (std::size_t i = 0; i < 3 * kRevokedMax; ++i) {
    command::Command command;
    command::NoteCertificate& c = *command.mutable_note_certificate();
    c.set_host_id("h2");
    c.mutable_certificate()->set_serial(std::string(30, 'b') + std::to_string(10 + i % 80));
    c.mutable_certificate()->set_end_unix_s(w.now_unix_s + 100 + i);
    ck_assert_int_eq(w.apply(command).status().code(), command::CODE_OK);
  }
  ck_assert_int_eq(w.state().members.at("h2").revoked_size(), static_cast<int>(kRevokedMax));
}
END_TEST

START_TEST(members_are_kept) {
  World w = three();
  w.add("h4", 4);
  w.drain("h3");
  const auto entries = entries_of(w.state());
  for (std::size_t i = 1; i < entries.size(); ++i) ck_assert(entries[i - 1].first < entries[i].first);
  const auto again = load(entries);
  ck_assert_msg(again.has_value(), "%s", again ? "" : again.error().message.c_str());
  ck_assert(entries_of(*again) == entries);
  ck_assert_uint_eq(again->members.size(), 3);
  ck_assert(again->hosts.at("h3").draining());
  auto forged = entries;
  for (auto& [key, value] : forged) {
    if (key == "member/h2") value = World::member("h3").SerializeAsString();
  }
  ck_assert(!load(forged).has_value());
}
END_TEST

}  // namespace

int main() {
  return run_suite("members", {a_cluster_of_one_needs_no_members,
                               a_stranger_may_not_register,
                               a_token_lets_one_key_in_once,
                               a_token_expires,
                               a_new_token_replaces_the_one_before,
                               open_tokens_are_bounded,
                               used_tokens_make_room,
                               founding_frees_what_strangers_waited_for,
                               a_removed_guest_host_loses_what_it_held,
                               a_removed_home_must_confirm_or_be_declared_dead,
                               the_last_host_stays,
                               five_store_members_at_most,
                               a_drained_host_gives_back_and_gets_nothing,
                               a_restore_fences_what_the_backup_says_is_leased,
                               an_interrupted_restore_begins_again,
                               bounds,
                               a_replaced_certificate_is_revoked_when_the_new_one_is_in_use,
                               a_removed_host_has_no_certificate_that_is_good,
                               what_has_ended_by_itself_needs_no_revocation,
                               members_are_kept});
}
