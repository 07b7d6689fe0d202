// The home of a device on the host's own bus: in which order it opens and shuts the two doors, and what it does when
// one of them does not move. What the kernel then does is seen in the testbed.
#include <map>

#include "tests/unit/host/agent_fixture.h"
#include "tests/unit/host/fake_qemu.h"
#include "tests/unit/host/fake_usb_gate.h"

namespace usblease::host {
namespace {

using test::AgentFixture;
using test::Child;
using test::FakeGate;
using test::kGuestUuid;
using test::run_posted;
using test::run_until;
using test::SilentInput;

constexpr const char* kNoPort = "";

std::vector<DeviceConfig> stick() {
  DeviceConfig device;
  device.name = "stick";
  device.usb = UsbMatch{0x46f4, 0x0001, "STICK"};
  return {device};
}

UsbSighting seen_at(const std::string& port, std::uint64_t inode) {
  UsbSighting sighting;
  sighting.detail = port == kNoPort ? "not plugged in" : "plugged in at " + port;
  if (port == kNoPort) return sighting;
  usb::UsbDevice device;
  device.name = port;
  device.bus = 1;
  device.device = static_cast<std::uint32_t>(inode % 100);
  device.inode = inode;
  sighting.device = device;
  return sighting;
}

struct Host {
  Host() {
    see(seen_at("1-2", 7));
    f.start();
    f.hypervisor->events.connected({});
    ck_assert(present(true));
  }
  void see(const UsbSighting& sighting) { f.agent->on_usb("stick", sighting); }
  [[nodiscard]] bool present(bool wanted) {
    const auto& devices = f.coordinator.core.state().devices;
    return run_until([&] {
      const auto found = devices.find("stick");
      return found != devices.end() && !found->second.homes().empty() && found->second.homes(0).present() == wanted;
    });
  }
  // The guest runs and gets the device plugged in, as far as libvirt's part.
  void attach(const std::string& id = "attach") {
    api::Attach request;
    request.set_request_id(id);
    request.set_guest("web");
    request.add_devices("stick");
    f.agent->attach(
        request, "root@here", [](const command::Reply& /*waiting*/) {},
        [this](const Result<command::Reply>& reply) { attached = reply.has_value(); });
    ck_assert(run_until([&] { return !f.hypervisor->finding.empty(); }));
    f.hypervisor->finding.back()(test::running_guest());
    f.hypervisor->finding.clear();
    ck_assert(run_until([&] { return !f.hypervisor->attaching.empty(); }));
  }
  void libvirt_did() {
    f.hypervisor->attaching.back()({});
    f.hypervisor->attaching.clear();
    run_posted();
  }
  [[nodiscard]] std::uint64_t token() const { return f.coordinator.core.state().devices.at("stick").lease().token(); }
  [[nodiscard]] bool called(const std::string& call) const {
    return std::find(gate.calls.begin(), gate.calls.end(), call) != gate.calls.end();
  }
  void revoke() {
    command::Command command;
    command.mutable_revoke()->set_device("stick");
    command.mutable_revoke()->set_token(token());
    ck_assert_int_eq(f.coordinator.apply(command).status().code(), command::CODE_OK);
  }

  const SilentInput input;
  FakeGate gate;
  AgentFixture f{stick(), {record::RUNG_KERNEL, record::RUNG_UNBIND}, &gate};
  bool attached = false;
};

START_TEST(it_is_opened_for_the_guests_qemu_alone) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  const std::vector<std::string> expected = {"arm 1-2", "bind 1-2", "arm 1-2"};
  ck_assert(h.gate.calls == expected);
  ck_assert_int_eq(h.gate.reset_by, getpid());
  ck_assert_int_eq(h.gate.holder.pid, qemu.pid());
  ck_assert_uint_eq(h.gate.armed.token, h.token());
  ck_assert_uint_gt(h.gate.armed.deadline_ns, boottime_now_ns());
  ck_assert_uint_eq(h.f.home_file->floor("stick").armed(), h.token());
  ck_assert_uint_eq(h.f.hypervisor->usb_attached.at(0).device, 7);
  ck_assert(!h.attached);
  h.libvirt_did();
  ck_assert(h.attached);
}
END_TEST

START_TEST(revoked_it_is_shut_before_it_is_free) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  const std::uint64_t token = h.token();
  h.gate.calls.clear();
  h.gate.stuck = true;
  h.f.hypervisor->hangs = true;
  h.revoke();
  ck_assert(run_until([&] { return h.called("unbind 1-2"); }));
  ck_assert_uint_eq(h.gate.armed.deadline_ns, 0);
  test::expect_text(h.f.coordinator.phase("stick"), "fencing");
  ck_assert_uint_lt(h.f.home_file->floor("stick").fenced(), token);
  // It does not move: the guest goes, and with it every handle; the kernel lets no new one in.
  ck_assert(run_until([&] { return !h.f.hypervisor->destroyed.empty(); }));
  test::expect_text(h.f.hypervisor->destroyed.at(0), kGuestUuid);
  test::expect_text(h.f.coordinator.phase("stick"), "fencing");
  qemu.end();
  ck_assert(h.f.phase_becomes("stick", "free"));
  ck_assert_uint_ge(h.f.home_file->floor("stick").fenced(), token);
}
END_TEST

START_TEST(unbound_is_enough_with_the_kernel) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  h.revoke();
  ck_assert(h.f.phase_becomes("stick", "free"));
  ck_assert(h.f.hypervisor->destroyed.empty());
  const std::vector<std::string> expected = {"arm 1-2", "bind 1-2", "arm 1-2", "disarm 1-2", "unbind 1-2"};
  ck_assert(h.gate.calls == expected);
}
END_TEST

START_TEST(without_the_kernel_qemu_must_give_it_up) {
  Host h;
  h.gate.kernel = false;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  ck_assert(!h.called("arm 1-2"));
  h.libvirt_did();
  h.f.hypervisor->hangs = true;
  h.revoke();
  ck_assert(run_until([&] { return h.called("unbind 1-2"); }));
  test::expect_text(h.f.coordinator.phase("stick"), "fencing");
  qemu.end();
  ck_assert(h.f.phase_becomes("stick", "free"));
}
END_TEST

START_TEST(a_deadline_that_passes_ends_it) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  h.f.coordinator.silent = true;
  ck_assert(run_until([&] { return h.called("unbind 1-2"); }));
  ck_assert_uint_le(h.gate.armed.deadline_ns, boottime_now_ns());
  h.f.coordinator.silent = false;
  ck_assert(h.f.phase_becomes("stick", "free"));
}
END_TEST

START_TEST(plugged_in_again_it_comes_back_under_another_token) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  const std::uint64_t token = h.token();
  h.see(seen_at(kNoPort, 0));
  ck_assert(h.present(false));
  ck_assert(h.f.phase_becomes("stick", "free"));
  h.gate.calls.clear();
  h.see(seen_at("1-3", 8));
  ck_assert(run_until([&] { return h.called("bind 1-3"); }));
  ck_assert_uint_gt(h.token(), token);
  ck_assert_uint_eq(h.gate.armed.token, h.token());
}
END_TEST

// Else a device that leaves the bus at each reset would be given back, reset and lost again for ever.
START_TEST(gone_before_it_was_open_it_does_not_come_back) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  h.see(seen_at(kNoPort, 0));
  ck_assert(h.present(false));
  ck_assert(h.f.phase_becomes("stick", "free"));
  h.gate.slow_bind = true;
  h.see(seen_at("1-3", 8));
  ck_assert(run_until([&] { return h.called("bind 1-3"); }));
  h.see(seen_at(kNoPort, 0));
  ck_assert(h.present(false));
  h.see(seen_at("1-4", 9));
  ck_assert(h.present(true));
  ck_assert(h.f.phase_becomes("stick", "free"));
  run_until([&] { return h.called("bind 1-4"); }, 200);
  ck_assert(!h.called("bind 1-4"));
}
END_TEST

START_TEST(a_quick_replug_is_another_instance) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  const std::uint64_t token = h.token();
  h.see(seen_at("1-2", 9));  // nobody saw it absent
  ck_assert(run_until([&] { return h.f.coordinator.phase("stick") == "granted" && h.token() > token; }));
  ck_assert(run_until([&] { return h.gate.armed.token == h.token(); }));
}
END_TEST

START_TEST(a_daemon_that_comes_back_goes_on) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  const std::uint64_t token = h.token();
  h.gate.calls.clear();
  h.f.make_agent();
  h.see(seen_at("1-2", 7));
  h.f.start();
  const std::uint64_t before_ns = h.gate.armed.deadline_ns;
  ck_assert(run_until([&] { return h.gate.armed.deadline_ns > before_ns; }));
  ck_assert_uint_eq(h.token(), token);
  ck_assert(h.gate.calls.empty());
}
END_TEST

START_TEST(a_daemon_that_comes_back_too_late_ends_it) {
  Host h;
  Child qemu(h.f.pid_file(), kGuestUuid);
  h.attach();
  h.libvirt_did();
  h.gate.armed.deadline_ns = boottime_now_ns();
  h.gate.calls.clear();
  h.f.make_agent();
  h.see(seen_at("1-2", 7));
  h.f.start();
  h.f.hypervisor->events.connected({});
  ck_assert(h.f.phase_becomes("stick", "free"));
  const std::vector<std::string> expected = {"disarm 1-2", "unbind 1-2"};
  ck_assert(h.gate.calls.size() >= expected.size());
  ck_assert(std::equal(expected.begin(), expected.end(), h.gate.calls.begin()));
  ck_assert(!h.called("arm 1-2"));
}
END_TEST

// QEMU opens what its XML names before libvirt says that it runs.
START_TEST(a_hostdev_is_open_before_its_guest_starts) {
  Host h;
  const auto hook = [&](const std::string& operation) {
    api::HookCall call = h.f.hook_call(operation, 5);
    api::Declared& declared = *call.add_devices();
    declared.set_device("stick");
    declared.set_required(true);
    declared.set_how(api::DECLARATION_HOSTDEV);
    std::optional<command::Code> code;
    h.f.agent->hook_calls().handle(call, "root@here",
                                   [&](command::Code c, const std::string& /*message*/) { code = c; });
    ck_assert(run_until([&] { return code.has_value(); }));
    ck_assert_int_eq(*code, command::CODE_OK);
  };
  hook("prepare");
  hook("start");
  ck_assert(h.called("bind 1-2"));
  ck_assert_int_eq(h.gate.holder.pid, getpid());
  Child qemu(h.f.pid_file(), kGuestUuid);
  ck_assert(run_until([&] { return h.gate.holder.pid == qemu.pid(); }));
  ck_assert(h.f.hypervisor->usb_attached.empty());
  qemu.end();
  ck_assert(h.f.phase_becomes("stick", "free"));
}
END_TEST

START_TEST(a_place_is_read_as_it_was_written) {
  const UsbPlace place{"1-2.4", 1, 7, 20'513};
  ck_assert(parse_place(to_text(place)) == place);
  for (const char* bad : {"", "1-2.4", "1-2.4 1 7", "1-2.4 1 7 x", "1-2.4 1 7 8 9"}) ck_assert(!parse_place(bad));
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "usb_home",
      {it_is_opened_for_the_guests_qemu_alone, revoked_it_is_shut_before_it_is_free, unbound_is_enough_with_the_kernel,
       without_the_kernel_qemu_must_give_it_up, a_deadline_that_passes_ends_it,
       plugged_in_again_it_comes_back_under_another_token, gone_before_it_was_open_it_does_not_come_back,
       a_quick_replug_is_another_instance, a_daemon_that_comes_back_goes_on, a_daemon_that_comes_back_too_late_ends_it,
       a_hostdev_is_open_before_its_guest_starts, a_place_is_read_as_it_was_written},
      60);
}
