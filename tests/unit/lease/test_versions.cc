// Rolling upgrades: what hosts announce, what the cluster uses, and the one migration of the records.
#include "daemon/lease/versions.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;

// A later usblease, whose format 2 names devices in the serial of their homes, and 3 changes nothing.
const Versions& later() {
  static const Versions kLater{
      3, 2, {{1, [](State& state, std::set<std::string>& changed) {
                for (auto& [name, device] : state.devices) {
                  for (auto& home : *device.mutable_homes())
                    home.mutable_identity()->set_serial("migrated " + home.identity().serial());
                  changed.insert(device_key(name));
                }
              }}}};
  return kLater;
}

struct Upgrading : World {
  explicit Upgrading(const Versions& own) { core = Core(make_state("test"), own); }

  command::Code announce(const std::string& id, std::uint32_t format, std::uint32_t peer) {
    command::Command command;
    command::RegisterHost& c = *command.mutable_register_host();
    c.mutable_host()->set_id(id);
    c.mutable_host()->set_boot_id(boot_of(id));
    c.mutable_host()->set_machine_uuid("machine-" + id);
    c.mutable_host()->set_version("9.9");
    c.mutable_host()->set_record_format(format);
    c.mutable_host()->set_peer_version(peer);
    c.set_has_floors(true);
    return apply(command).status().code();
  }
  // "FORMAT/PEER VERSION" as recorded.
  [[nodiscard]] std::string in_use() const {
    return std::to_string(state().meta.format()) + "/" + std::to_string(std::max(1U, state().meta.peer_version()));
  }
  void member_of(const std::string& id, int number) {
    ck_assert_int_eq(add(id, number), command::CODE_OK);
    ck_assert_int_eq(join(id, number, number), command::CODE_OK);
  }
};

START_TEST(a_cluster_of_the_first_version_stays_there) {
  Upgrading w(own_versions());
  ck_assert_int_eq(w.announce("h1", 7, 7), command::CODE_OK);
  ASSERT_TEXT(w.in_use(), "1/1");
}
END_TEST

START_TEST(the_last_host_raises_it_and_the_records_migrate_once) {
  Upgrading w(later());
  w.found("h1");
  w.member_of("h2", 2);
  // The first is upgraded; the second has not said anything yet, then says that it is old.
  w.announce("h1", 3, 2);
  w.plug("dongle", "h1");
  ASSERT_TEXT(w.in_use(), "1/1");
  w.announce("h2", 0, 0);
  ASSERT_TEXT(w.in_use(), "1/1");
  // Gone is not upgraded.
  w.host_gone("h2");
  w.announce("h1", 3, 2);
  ASSERT_TEXT(w.in_use(), "1/1");
  w.announce("h2", 3, 2);
  ASSERT_TEXT(w.in_use(), "3/2");
  ASSERT_TEXT(w.device("dongle").homes(0).identity().serial(), "migrated ");
  // All of it in the one decision that raised the format.
  std::set<std::string> keys;
  for (const Change& change : w.last.changes) keys.insert(change.key);
  ck_assert(keys.contains(kMetaKey) && keys.contains(device_key("dongle")));
  ck_assert_int_eq(std::count_if(w.last.events.begin(), w.last.events.end(),
                                 [](const auto& event) { return event.kind() == "upgraded"; }),
                   1);
  // Not again.
  w.announce("h1", 3, 2);
  w.announce("h2", 4, 4);
  ASSERT_TEXT(w.in_use(), "3/2");
  ASSERT_TEXT(w.device("dongle").homes(0).identity().serial(), "migrated ");
}
END_TEST

START_TEST(each_is_the_least_of_all) {
  Upgrading w(later());
  w.found("h1");
  w.member_of("h2", 2);
  w.announce("h1", 3, 2);
  w.announce("h2", 2, 1);
  ASSERT_TEXT(w.in_use(), "2/1");
}
END_TEST

START_TEST(removing_the_last_old_host_raises_it) {
  Upgrading w(later());
  w.found("h1");
  w.member_of("h2", 2);
  w.announce("h1", 3, 2);
  w.announce("h2", 1, 1);
  ASSERT_TEXT(w.in_use(), "1/1");
  ck_assert_int_eq(w.remove("h2"), command::CODE_OK);
  ASSERT_TEXT(w.in_use(), "3/2");
}
END_TEST

START_TEST(it_is_never_lowered) {
  Upgrading w(later());
  w.found("h1");
  w.announce("h1", 3, 2);
  ASSERT_TEXT(w.in_use(), "3/2");
  // A host of an older version may be invited, but not take part.
  w.member_of("h2", 2);
  ck_assert_int_eq(w.announce("h2", 1, 1), command::CODE_REFUSED);
  ck_assert(w.last.reply.status().message().find("upgrade usblease there") != std::string::npos);
  ck_assert_int_eq(w.announce("h2", 3, 1), command::CODE_REFUSED);
  ASSERT_TEXT(w.in_use(), "3/2");
  ck_assert_int_eq(w.announce("h2", 3, 2), command::CODE_OK);
}
END_TEST

// What an older coordinator does with a store that has gone on: it does not even read it.
START_TEST(an_older_version_refuses_the_store) {
  Upgrading w(later());
  w.announce("h1", 3, 2);
  std::vector<std::pair<std::string, std::string>> entries;
  for (const Change& change : encode(w.state())) entries.emplace_back(change.key, *change.value);
  const auto loaded = load(entries);
  ck_assert(!loaded.has_value());
  ck_assert(loaded.error().message.find("newer usblease") != std::string::npos);
}
END_TEST

}  // namespace

int main() {
  return run_suite("versions",
                   {a_cluster_of_the_first_version_stays_there, the_last_host_raises_it_and_the_records_migrate_once,
                    each_is_the_least_of_all, removing_the_last_old_host_raises_it, it_is_never_lowered,
                    an_older_version_refuses_the_store});
}
