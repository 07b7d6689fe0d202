// The home of an endpoint, with a real endpoint and a real relay: what it arms, and how it proves an end.
#include <dlfcn.h>

#include <array>
#include <cerrno>

#include "common/glib_ptr.h"
#include "tests/unit/host/agent_fixture.h"
#include "tests/unit/host/fake_qemu.h"
#include "tests/unit/relay/harness.h"

namespace usblease::host {
namespace {

using test::AgentFixture;
using test::Child;
using test::DongleProcess;
using test::kGuestUuid;
using test::run_until;
using test::SilentInput;
using test::TempDir;

std::vector<DeviceConfig> configured(const std::string& address) {
  DeviceConfig dongle;
  dongle.name = "dongle";
  dongle.endpoint = address;
  return {dongle};
}

std::vector<DeviceConfig> demanding(const std::string& address) {
  std::vector<DeviceConfig> devices = configured(address);
  devices[0].min_rung = Rung::kQemu;
  return devices;
}

// The device is there, and granted to a start of the guest; its QEMU has not connected yet.
struct Granted {
  Granted() { start(); }
  // Its policy wants a QEMU that enforces the lease; the host has such modules installed.
  struct Demanding {};
  explicit Granted(Demanding /*policy*/, const std::function<void(AgentFixture&)>& before = nullptr)
      : f(demanding(dongle.address()), {record::RUNG_RELAY, record::RUNG_QEMU}) {
    if (before) before(f);
    start();
  }
  void start() {
    f.start();
    const auto& devices = f.coordinator.core.state().devices;
    ck_assert(run_until([&] {
      const auto found = devices.find("dongle");
      return found != devices.end() && !found->second.homes().empty() && found->second.homes(0).present();
    }));
    api::HookCall call = f.hook_call("prepare", 5);
    api::Declared& declared = *call.add_devices();
    declared.set_device("dongle");
    declared.set_required(true);
    declared.set_how(api::DECLARATION_REDIRDEV);
    f.agent->hook_calls().handle(call, "root@here", [](command::Code /*code*/, const std::string& /*message*/) {});
    ck_assert(f.phase_becomes("dongle", "granted"));
  }
  // The guest ends, and no relay is left behind.
  void end(Child& qemu) const {
    qemu.end();
    ck_assert(f.phase_becomes("dongle", "free"));
    ck_assert(run_until([&] { return f.agent->relays() == 0; }));
  }
  [[nodiscard]] std::uint64_t token() const { return f.coordinator.core.state().devices.at("dongle").lease().token(); }

  const SilentInput input;
  const TempDir directory;
  DongleProcess dongle{directory, {}};
  AgentFixture f{configured(dongle.address())};
};

// The page as QEMU reads it: opened once.
class PageReader {
 public:
  explicit PageReader(const Granted& g) : fd_(usb_lease_open(g.f.lease_page("dongle").c_str())) {}
  [[nodiscard]] int look() { return fd_.get() < 0 ? -ENOENT : usb_lease_read(fd_.get(), &slot); }
  [[nodiscard]] bool grants(std::uint64_t token) {
    return look() == 0 && slot.state == USB_LEASE_GRANTED && slot.token == token;
  }
  // The last words of a page that has lost its name.
  [[nodiscard]] UsbLeaseSlot last_words() const {
    std::array<std::uint8_t, USB_LEASE_PAGE_BYTES> bytes{};
    ck_assert_int_eq(pread(fd_.get(), bytes.data(), bytes.size(), 0), USB_LEASE_PAGE_BYTES);
    UsbLeaseSlot last{};
    ck_assert(usb_lease_decode(bytes.data(), bytes.size(), &last));
    return last;
  }
  UsbLeaseSlot slot{};

 private:
  UniqueFd fd_;
};

// A library that stands for our module: under its name, and its build-id is written down as ours.
std::string stand_in_module(const AgentFixture& f) {
  Dl_info info{};
  ck_assert(dladdr(reinterpret_cast<void*>(&g_main_context_iteration), &info) != 0);
  const std::string path = f.directory.path("hw-usb-redirect.so");
  char* bytes = nullptr;
  gsize size = 0;
  ck_assert(g_file_get_contents(info.dli_fname, &bytes, &size, nullptr));
  const GChars owner(bytes);
  ck_assert(g_file_set_contents(path.c_str(), bytes, static_cast<gssize>(size), nullptr));
  return path;
}

void write_down(const AgentFixture& f, const std::string& build_id) {
  ck_assert_int_eq(g_mkdir_with_parents(f.directory.path("module").c_str(), 0755), 0);
  ck_assert(g_file_set_contents(f.directory.path("module/build-ids").c_str(), (build_id + "\n").c_str(), -1, nullptr));
}

START_TEST(a_guest_that_connects_is_armed) {
  Granted g;
  Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  ck_assert_uint_eq(g.f.home_file->floor("dongle").armed(), g.token());
  ck_assert(run_until([&] { return g.f.agent->deadline_ns("dongle", g.token()) > boottime_now_ns(); }));
  ck_assert(g.f.coordinator.phase("dongle") == "granted");
  qemu.end();
  ck_assert(g.f.phase_becomes("dongle", "free"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 0; }));  // none is left behind
}
END_TEST

// An earlier daemon armed it and died with the relay: nobody saw that stream end.
START_TEST(a_token_whose_stream_nobody_saw_end_is_not_armed_again) {
  Granted g;
  const record::Instance instance = g.f.coordinator.core.state().devices.at("dongle").lease().instance();
  const std::uint64_t token = g.token();
  bool stored = false;
  g.f.home_file->record_armed("dongle", token, instance.counter(), instance.boot_id(),
                              [&](const Result<void>& result) { stored = result.has_value(); });
  ck_assert(run_until([&] { return stored; }));
  const Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  // A fresh stream proves the end, and with it the lease is over.
  ck_assert(g.f.phase_becomes("dongle", "free"));
  ck_assert_uint_ge(g.f.home_file->floor("dongle").fenced(), token);
}
END_TEST

START_TEST(what_the_configuration_does_not_name_any_more_is_fenced_and_forgotten) {
  Granted g;
  const Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  const std::uint64_t token = g.token();
  g.f.make_agent(std::vector<DeviceConfig>());
  g.f.start();
  const auto& dongle = g.f.coordinator.core.state().devices.at("dongle");
  ck_assert(run_until([&] { return dongle.homes().empty(); }));
  ck_assert(!dongle.has_lease());
  ck_assert_uint_eq(g.f.home_file->floor("dongle").fenced(), token);
  ck_assert(run_until([&] { return g.f.agent->relays() == 0; }));
}
END_TEST

// Its relay is gone too: only a fresh stream at the old address proves anything.
START_TEST(what_is_not_named_any_more_stays_in_fencing_until_its_end_is_proved) {
  Granted g;
  const record::Instance instance = g.f.coordinator.core.state().devices.at("dongle").lease().instance();
  bool stored = false;
  g.f.home_file->record_armed("dongle", g.token(), instance.counter(), instance.boot_id(),
                              [&](const Result<void>& result) { stored = result.has_value(); });
  ck_assert(run_until([&] { return stored; }));
  const std::string path = g.dongle.address().substr(std::string("unix:").size());
  g.dongle.kill_and_reap();
  unlink(path.c_str());
  g.f.make_agent(std::vector<DeviceConfig>());
  g.f.start();
  ck_assert(g.f.phase_becomes("dongle", "fencing"));
  const auto& dongle = g.f.coordinator.core.state().devices.at("dongle");
  ck_assert_int_eq(dongle.homes_size(), 1);
  const DongleProcess again(g.directory, {}, g.dongle.address());
  ck_assert(run_until([&] { return dongle.homes().empty(); }));
  ck_assert(!dongle.has_lease());
}
END_TEST

// --- The lease page ------------------------------------------------------------------------------------

START_TEST(the_page_is_there_before_the_guest_connects) {
  Granted g;
  PageReader page(g);
  ck_assert(page.grants(g.token()));
  ck_assert_uint_gt(page.slot.deadline_ns, boottime_now_ns());
  ck_assert_uint_eq(page.slot.pid, 0);
  Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  ck_assert(page.grants(g.token()));
  ck_assert_int_eq(static_cast<pid_t>(page.slot.pid), qemu.pid());
  const std::uint64_t deadline_ns = page.slot.deadline_ns;
  ck_assert(run_until([&] { return page.grants(g.token()) && page.slot.deadline_ns > deadline_ns; }));
  ck_assert_uint_eq(page.slot.deadline_ns, g.f.agent->deadline_ns("dongle", g.token()));
  g.end(qemu);
  ck_assert(run_until([&] { return page.look() == -ESTALE; }));
}
END_TEST

// However long the guest takes to start, its QEMU finds a lease that is live.
START_TEST(the_page_is_renewed_before_the_guest_connects) {
  const Granted g;
  PageReader page(g);
  ck_assert(page.grants(g.token()));
  const std::uint64_t deadline_ns = page.slot.deadline_ns;
  ck_assert(run_until([&] { return page.grants(g.token()) && page.slot.deadline_ns > deadline_ns; }));
}
END_TEST

START_TEST(a_fence_revokes_the_page) {
  Granted g;
  PageReader page(g);
  const Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  const std::uint64_t token = g.token();
  command::Command command;
  command.mutable_revoke()->set_device("dongle");
  command.mutable_revoke()->set_token(token);
  command.mutable_revoke()->set_reason("wanted elsewhere");
  ck_assert_int_eq(g.f.coordinator.apply(command).status().code(), command::CODE_OK);
  ck_assert_int_eq(page.last_words().state, USB_LEASE_REVOKED);  // in the same call
  ck_assert(g.f.phase_becomes("dongle", "free"));
  ck_assert(run_until([&] { return page.look() == -ESTALE; }));
  ck_assert_int_eq(page.last_words().state, USB_LEASE_REVOKED);
  ck_assert(run_until([&] { return g.f.agent->relays() == 0; }));
}
END_TEST

START_TEST(a_new_daemon_goes_on_with_the_page) {
  Granted g;
  PageReader page(g);
  Child qemu(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  ck_assert(page.grants(g.token()));
  const std::uint64_t deadline_ns = page.slot.deadline_ns;
  g.f.make_agent();
  ck_assert(page.grants(g.token()));
  g.f.start();
  ck_assert(run_until([&] { return page.grants(g.token()) && page.slot.deadline_ns > deadline_ns; }));
  g.end(qemu);
}
END_TEST

// Its daemon died after the lease ended, or with it.
START_TEST(a_page_without_a_lease_is_closed) {
  Granted g;
  LeasePages earlier(g.f.directory.path("run"));
  earlier.grant({"gone", 3, kGuestUuid, "0123456789abcdef", UINT64_MAX});
  ck_assert(earlier.holds("gone", 3));
  g.f.make_agent();
  g.f.start();
  const std::string path = g.f.lease_page("gone");
  ck_assert(run_until([&] { return usb_lease_open(path.c_str()) == -ENOENT; }));
  PageReader page(g);
  ck_assert(page.grants(g.token()));  // the other one stays
}
END_TEST

// --- A policy that wants QEMU to enforce the lease ------------------------------------------------------

// The trap: a stock module works like ours until the deadline, and then goes on.
START_TEST(a_stock_module_is_not_enough) {
  if (geteuid() != 0) return;  // only root sees what a process has mapped
  Granted g{Granted::Demanding()};
  write_down(g.f, "0123456789abcdef");
  Child stock(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"), stand_in_module(g.f));
  ck_assert(run_until([&] { return stock.ended(); }));  // it was turned away
  ck_assert_uint_eq(g.f.agent->relays(), 0);
  ck_assert_uint_eq(g.f.home_file->floor("dongle").armed(), 0);
}
END_TEST

START_TEST(no_module_is_not_enough) {
  if (geteuid() != 0) return;
  Granted g{Granted::Demanding()};
  write_down(g.f, *build_id_of(stand_in_module(g.f)));
  Child without(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"), "");
  ck_assert(run_until([&] { return without.ended(); }));
  ck_assert_uint_eq(g.f.home_file->floor("dongle").armed(), 0);
}
END_TEST

START_TEST(a_module_that_enforces_is_enough) {
  if (geteuid() != 0) return;
  Granted g{Granted::Demanding()};
  const std::string module = stand_in_module(g.f);
  write_down(g.f, *build_id_of(module));
  Child ours(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"), module);
  ck_assert(run_until([&] { return g.f.home_file->floor("dongle").armed() == g.token(); }));
  ck_assert(run_until([&] { return g.f.agent->relays() == 1; }));
  g.end(ours);
}
END_TEST

START_TEST(a_module_without_a_page_is_not_enough) {
  if (geteuid() != 0) return;
  Granted g{Granted::Demanding(), [](const AgentFixture& f) {
              // A file where the directory of the pages should be.
              ck_assert_int_eq(rmdir(f.directory.path("run/pages").c_str()), 0);
              ck_assert(g_file_set_contents(f.directory.path("run/pages").c_str(), "", 0, nullptr));
            }};
  ck_assert_msg(g.f.agent->page_trouble().find("run/pages") != std::string::npos, "%s",
                g.f.agent->page_trouble().c_str());
  const std::string module = stand_in_module(g.f);
  write_down(g.f, *build_id_of(module));
  Child ours(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"), module);
  ck_assert(run_until([&] { return ours.ended(); }));
  ck_assert_uint_eq(g.f.home_file->floor("dongle").armed(), 0);
}
END_TEST

// What QEMU connects with before it has loaded the module says nothing yet.
START_TEST(a_silent_stream_waits) {
  Granted g{Granted::Demanding()};
  const Child silent(g.f.pid_file(), kGuestUuid, g.f.socket("dongle"));
  test::run_posted();
  ck_assert(!run_until([&] { return g.f.agent->relays() == 1; }, 500));
  ck_assert_uint_eq(g.f.home_file->floor("dongle").armed(), 0);
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "endpoint home",
      {a_guest_that_connects_is_armed, a_token_whose_stream_nobody_saw_end_is_not_armed_again,
       what_the_configuration_does_not_name_any_more_is_fenced_and_forgotten,
       what_is_not_named_any_more_stays_in_fencing_until_its_end_is_proved, the_page_is_there_before_the_guest_connects,
       the_page_is_renewed_before_the_guest_connects, a_fence_revokes_the_page, a_new_daemon_goes_on_with_the_page,
       a_page_without_a_lease_is_closed, a_stock_module_is_not_enough, no_module_is_not_enough,
       a_module_that_enforces_is_enough, a_module_without_a_page_is_not_enough, a_silent_stream_waits},
      60);
}
