// What the host agent does when clients leave, starts end, migrations fail and the daemon is restarted in the middle.
#include <sys/stat.h>

#include "tests/unit/host/agent_fixture.h"
#include "tests/unit/host/fake_qemu.h"

namespace usblease::host {
namespace {

using test::AgentFixture;
using test::Child;
using test::kGuestUuid;
using test::kOtherBootId;
using test::run_posted;
using test::run_until;
using test::running_guest;
using test::SilentInput;

using Reply = command::Reply;

api::Attach attach_request(std::uint32_t wait_ms = 0) {
  api::Attach request;
  request.set_request_id("r1");
  request.set_guest("web");
  request.add_devices("dongle");
  request.set_wait_ms(wait_ms);
  return request;
}

void attach(AgentFixture& f) {
  f.agent->attach(attach_request(), "root@here", nullptr, [](const Result<Reply>& /*reply*/) {});
}

bool exists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0;
}

std::size_t acquires(const AgentFixture& f) {
  return static_cast<std::size_t>(std::count_if(f.coordinator.submitted.begin(), f.coordinator.submitted.end(),
                                                [](const auto& command) { return command.has_acquire(); }));
}

// The guest's start on another host, which has the device.
command::Acquire acquire_elsewhere() {
  command::Acquire acquire;
  acquire.set_request_id("source");
  record::Start& start = *acquire.mutable_start();
  start.set_guest_uuid(kGuestUuid);
  start.set_nonce("0000000000000001");
  start.set_host_id("there");
  start.set_boot_id(kOtherBootId);
  start.set_domain_id(3);
  start.set_prepared_boottime_ns(1);
  acquire.set_guest_name("web");
  acquire.add_devices("dongle");
  acquire.set_principal("root@there");
  return acquire;
}

void source_holds(AgentFixture& f) {
  f.coordinator.add_home("there", "dongle");
  command::Command command;
  *command.mutable_acquire() = acquire_elsewhere();
  ck_assert_int_eq(f.coordinator.apply(command).status().code(), command::CODE_OK);
}

void source_lets_go(AgentFixture& f) {
  const record::Lease lease = f.coordinator.core.state().devices.at("dongle").lease();
  command::Command command;
  *command.mutable_release()->mutable_start() = lease.start();
  f.coordinator.apply(command);
  command.mutable_confirm_fenced()->set_device("dongle");
  command.mutable_confirm_fenced()->set_token(lease.token());
  *command.mutable_confirm_fenced()->mutable_instance() = lease.instance();
  f.coordinator.apply(command);
}

// The destination's hook, whose XML has no domain id yet.
void migrate_here(AgentFixture& f) {
  api::HookCall call = f.hook_call("migrate", -1);
  api::Declared& declared = *call.add_devices();
  declared.set_device("dongle");
  declared.set_required(true);
  declared.set_how(api::DECLARATION_METADATA);
  // Only the first answer counts: what becomes of the reservation later is no news for the hook.
  const auto answer = std::make_shared<command::Code>(command::CODE_UNSPECIFIED);
  f.agent->hook_calls().handle(call, "root@here", [answer](command::Code code, const std::string& /*message*/) {
    if (*answer == command::CODE_UNSPECIFIED) *answer = code;
  });
  ck_assert(run_until([&] { return *answer != command::CODE_UNSPECIFIED; }));
  ck_assert_int_eq(*answer, command::CODE_OK);
}

// A hook's call whose answer does not matter.
void say(AgentFixture& f, const api::HookCall& call) {
  f.agent->hook_calls().handle(call, "root@here", [](command::Code /*code*/, const std::string& /*message*/) {});
}

// Asks for the device once, and has its answer.
void prepare_optional(AgentFixture& f) {
  api::HookCall call = f.hook_call("prepare", 7);
  api::Declared& declared = *call.add_devices();
  declared.set_device("dongle");
  declared.set_how(api::DECLARATION_METADATA);
  say(f, call);
  ck_assert(run_until([&] { return acquires(f) == 1; }));
  run_posted();
}

// --- attach ----------------------------------------------------------------------------------------

START_TEST(a_client_that_left_while_libvirt_was_asked_gets_nothing) {
  const SilentInput input;
  AgentFixture f;
  const Child qemu(f.pid_file(), kGuestUuid);
  f.coordinator.add_home("there", "dongle");
  f.start();
  attach(f);
  attach(f);  // the same client again, over a new connection
  ck_assert_uint_eq(f.hypervisor->finding.size(), 2);
  f.agent->abandon_attach("r1");
  for (const auto& found : f.hypervisor->finding) found(running_guest());
  run_posted();
  ck_assert_uint_eq(acquires(f), 0);
  ck_assert(f.coordinator.phase("dongle") == "free");
  // And without leaving it does.
  attach(f);
  f.hypervisor->finding.back()(running_guest());
  ck_assert(f.phase_becomes("dongle", "granted"));
}
END_TEST

START_TEST(a_client_that_left_while_libvirt_attached_gives_back) {
  const SilentInput input;
  AgentFixture f;
  const Child qemu(f.pid_file(), kGuestUuid);
  f.coordinator.add_home("there", "dongle");
  f.start();
  f.hypervisor->events.guest_started(running_guest());
  attach(f);
  f.hypervisor->finding.at(0)(running_guest());
  ck_assert(f.phase_becomes("dongle", "granted"));
  ck_assert(run_until([&] { return f.hypervisor->attaching.size() == 1; }));
  f.agent->abandon_attach("r1");
  ck_assert(f.phase_becomes("dongle", "fencing"));
  f.hypervisor->attaching.at(0)({});
  ck_assert(run_until([&] { return f.hypervisor->detached.size() == 1; }));
}
END_TEST

START_TEST(a_client_that_has_its_answer_may_leave) {
  const SilentInput input;
  AgentFixture f;
  const Child qemu(f.pid_file(), kGuestUuid);
  f.start();
  std::string said;
  f.agent->attach(attach_request(), "root@here", nullptr,
                  [&](const Result<Reply>& reply) { said = reply ? "granted" : reply.error().message; });
  f.hypervisor->finding.at(0)(running_guest());
  ck_assert(run_until([&] { return !said.empty(); }));
  ck_assert_msg(said.find("there is no device dongle") != std::string::npos, "%s", said.c_str());
  const std::size_t before = f.coordinator.submitted.size();
  f.agent->abandon_attach("r1");
  run_posted();
  ck_assert_uint_eq(f.coordinator.submitted.size(), before);
}
END_TEST

// --- starts that end -------------------------------------------------------------------------------

START_TEST(a_start_that_ended_asks_for_nothing_more) {
  AgentFixture f;
  f.coordinator.add_home("there", "dongle");
  f.coordinator.add_home("there", "other");
  f.start();
  f.coordinator.away = true;
  prepare_optional(f);  // answered: unavailable, to be repeated
  say(f, f.hook_call("stopped", 7));
  // Asked for after it: when this one is repeated and granted, the other one's time has come too.
  command::Acquire clock = acquire_elsewhere();
  clock.set_request_id("clock");
  clock.mutable_start()->set_host_id("here");
  clock.mutable_start()->set_boot_id(test::kBootId);
  clock.mutable_start()->set_domain_id(-1);  // bare
  clock.mutable_start()->clear_prepared_boottime_ns();
  clock.set_devices(0, "other");
  clock.set_wait_ms(20'000);
  bool granted = false;
  f.agent->acquisitions().acquire(clock, nullptr,
                                  [&](const Reply& reply) { granted = reply.status().code() == command::CODE_OK; });
  run_posted();
  f.coordinator.away = false;
  ck_assert(run_until([&] { return granted; }));
  ck_assert(f.coordinator.phase("dongle") == "free");
}
END_TEST

START_TEST(a_repeat_on_its_way_when_the_start_ends_is_undone) {
  AgentFixture f;
  f.coordinator.add_home("there", "dongle");
  f.start();
  f.coordinator.away = true;
  prepare_optional(f);
  f.coordinator.away = false;
  ck_assert(run_until([&] { return acquires(f) == 2; }));  // sent, not answered yet
  say(f, f.hook_call("stopped", 7));
  run_posted();
  run_posted();
  ck_assert(f.coordinator.phase("dongle") != "granted");
}
END_TEST

// --- migration -------------------------------------------------------------------------------------

START_TEST(a_cancelled_migration_closes_its_socket) {
  AgentFixture f;
  source_holds(f);
  f.start();
  migrate_here(f);
  ck_assert(exists(f.socket("dongle")));
  say(f, f.hook_call("release", -1));
  ck_assert(run_until([&] { return f.coordinator.core.state().requests.empty(); }));
  run_posted();
  ck_assert(!exists(f.socket("dongle")));
}
END_TEST

START_TEST(a_reservation_that_ended_unseen_closes_its_socket) {
  AgentFixture f;
  source_holds(f);
  f.start();
  migrate_here(f);
  ck_assert(exists(f.socket("dongle")));
  peer::HostView whole;  // of a coordinator that has it no more
  whole.set_whole(true);
  f.agent->on_view(whole);
  ck_assert(!exists(f.socket("dongle")));
}
END_TEST

START_TEST(a_granted_migration_keeps_its_socket) {
  AgentFixture f;
  source_holds(f);
  f.start();
  migrate_here(f);
  source_lets_go(f);
  ck_assert_str_eq(f.coordinator.core.state().devices.at("dongle").lease().start().host_id().c_str(), "here");
  ck_assert(f.coordinator.core.state().requests.empty());
  ck_assert(exists(f.socket("dongle")));
}
END_TEST

START_TEST(a_restarted_daemon_adopts_what_migrated_here) {
  const SilentInput input;
  AgentFixture f;
  source_holds(f);
  f.start();
  migrate_here(f);
  source_lets_go(f);
  Child qemu(f.pid_file(), kGuestUuid);
  f.make_agent();
  f.start();
  ck_assert(exists(f.socket("dongle")));
  f.hypervisor->events.connected({running_guest(9)});
  run_posted();
  ck_assert(f.coordinator.phase("dongle") == "granted");
  // Which domain it became is known now: hook calls find it.
  command::Code code = command::CODE_UNSPECIFIED;
  f.agent->hook_calls().handle(f.hook_call("start", 9), "root@here",
                               [&](command::Code said, const std::string& /*message*/) { code = said; });
  ck_assert_int_eq(code, command::CODE_OK);
  qemu.end();
  ck_assert(f.phase_becomes("dongle", "fencing"));
}
END_TEST

START_TEST(a_restarted_daemon_still_knows_a_reservation) {
  AgentFixture f;
  source_holds(f);
  f.start();
  migrate_here(f);
  f.make_agent();
  f.start();
  // The destination prepares: the device is still the source's, and that is all right.
  api::HookCall call = f.hook_call("prepare", 9);
  api::Declared& declared = *call.add_devices();
  declared.set_device("dongle");
  declared.set_required(true);
  command::Code code = command::CODE_UNSPECIFIED;
  f.agent->hook_calls().handle(call, "root@here",
                               [&](command::Code said, const std::string& /*message*/) { code = said; });
  ck_assert(run_until([&] { return code != command::CODE_UNSPECIFIED; }));
  ck_assert_int_eq(code, command::CODE_OK);
  ck_assert_uint_eq(f.coordinator.core.state().requests.size(), 1);
}
END_TEST

// --- what is known first ---------------------------------------------------------------------------

START_TEST(guests_are_looked_at_only_when_the_leases_are_known) {
  const SilentInput input;
  AgentFixture f;
  const Child qemu(f.pid_file(), kGuestUuid);
  f.coordinator.add_home("there", "dongle");
  command::Command command;
  *command.mutable_acquire() = acquire_elsewhere();
  command.mutable_acquire()->mutable_start()->set_host_id("here");
  command.mutable_acquire()->mutable_start()->set_boot_id(test::kBootId);
  command.mutable_acquire()->mutable_start()->set_domain_id(5);
  command.mutable_acquire()->mutable_start()->set_prepared_boottime_ns(boottime_now_ns());
  command.mutable_acquire()->add_attach_devices("dongle");
  command::Command here;
  here.mutable_register_host()->mutable_host()->set_id("here");
  here.mutable_register_host()->mutable_host()->set_boot_id(test::kBootId);
  here.mutable_register_host()->set_has_floors(true);
  ck_assert_int_eq(f.coordinator.apply(here).status().code(), command::CODE_OK);
  ck_assert_int_eq(f.coordinator.apply(command).status().code(), command::CODE_OK);

  f.agent->start();
  ck_assert(run_until([&] { return static_cast<bool>(f.hypervisor->events.connected); }));
  Guest guest = running_guest();
  guest.attached = {"dongle", "stray"};
  f.hypervisor->events.connected({guest});
  run_posted();
  ck_assert_uint_eq(f.hypervisor->detached.size(), 0);
  f.coordinator.connect(f.agent.get());
  ck_assert(run_until([&] { return !f.hypervisor->detached.empty(); }));
  run_posted();
  ck_assert_uint_eq(f.hypervisor->detached.size(), 1);  // what no lease stands for, and nothing else
  ck_assert_str_eq(f.hypervisor->detached.at(0).c_str(), "stray");
  ck_assert_uint_eq(f.hypervisor->attaching.size(), 0);  // it is attached already
}
END_TEST

START_TEST(ready_when_requests_find_every_device) {
  const test::TemporaryDirectory empty;
  DeviceConfig dongle;
  dongle.name = "dongle";
  dongle.endpoint = "unix:" + empty.path("nobody-listens");
  AgentFixture late(std::vector{dongle});
  bool ready = false;
  late.agent->when_ready([&] { ready = late.coordinator.phase("dongle") != "unknown"; });
  late.coordinator.away = true;
  late.agent->start();
  run_posted();
  run_posted();
  ck_assert(!ready);
  late.coordinator.away = false;
  late.coordinator.connect(late.agent.get());
  ck_assert(run_until([&] { return ready; }));
}
END_TEST

// It answered just before libvirt was there, and is told of it just after.
START_TEST(a_libvirt_that_has_just_come_up_is_asked_again) {
  const SilentInput input;
  AgentFixture f;
  const Child qemu(f.pid_file(), kGuestUuid);
  f.coordinator.add_home("there", "dongle");
  f.start();
  attach(f);
  ck_assert_uint_eq(f.hypervisor->finding.size(), 1);
  ck_assert(f.hypervisor->is_connected());
  f.hypervisor->finding.at(0)(fail(ErrorCode::kUnavailable, "libvirt is away: not connected yet"));
  ck_assert(run_until([&] { return f.hypervisor->finding.size() == 2; }));
  f.hypervisor->finding.at(1)(running_guest());
  ck_assert(run_until([&] { return acquires(f) == 1; }));
}
END_TEST

// --- What this host can enforce -----------------------------------------------------------------------

START_TEST(rungs_that_come_and_go_are_told_to_the_coordinator) {
  AgentFixture f({}, {record::RUNG_RELAY});
  f.start();
  const auto known = [&] {
    const auto& rungs = f.coordinator.core.state().hosts.at("here").rungs();
    return std::vector<int>(rungs.begin(), rungs.end());
  };
  ck_assert(known() == std::vector<int>{record::RUNG_RELAY});
  f.agent->set_rungs({record::RUNG_RELAY, record::RUNG_QEMU});
  f.agent->set_rungs({record::RUNG_QEMU});  // while the registration with those before is under way
  ck_assert(run_until([&] { return known() == std::vector<int>{record::RUNG_QEMU}; }));
  run_posted();
  const auto before = f.coordinator.submitted.size();
  f.agent->set_rungs({record::RUNG_QEMU});
  run_posted();
  ck_assert_uint_eq(f.coordinator.submitted.size(), before);  // no news
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "host agent",
      {a_client_that_left_while_libvirt_was_asked_gets_nothing, a_client_that_left_while_libvirt_attached_gives_back,
       a_client_that_has_its_answer_may_leave, a_start_that_ended_asks_for_nothing_more,
       a_repeat_on_its_way_when_the_start_ends_is_undone, a_cancelled_migration_closes_its_socket,
       a_reservation_that_ended_unseen_closes_its_socket, a_granted_migration_keeps_its_socket,
       a_restarted_daemon_adopts_what_migrated_here, a_restarted_daemon_still_knows_a_reservation,
       guests_are_looked_at_only_when_the_leases_are_known, ready_when_requests_find_every_device,
       a_libvirt_that_has_just_come_up_is_asked_again, rungs_that_come_and_go_are_told_to_the_coordinator},
      60);
}
