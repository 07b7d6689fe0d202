// A host agent on a coordinator of its own: the real lease core, without a store, and a hypervisor that does nothing
// until it is told to.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/boottime.h"
#include "daemon/host/host_agent.h"
#include "daemon/lease/coordinator_session.h"
#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"
#include "tests/unit/host/host_test.h"

namespace usblease::test {

inline constexpr const char* kBootId = "99999999-9999-4999-8999-999999999999";
inline constexpr const char* kOtherBootId = "88888888-8888-4888-8888-888888888888";
inline constexpr const char* kGuestUuid = "11111111-2222-4333-8444-555555555555";

class FakeCoordinator : public cluster::CoordinatorLink {
 public:
  lease::Core core{lease::make_state("test")};
  bool away = false;
  bool silent = false;                      // renewals are not answered
  std::vector<command::Command> submitted;  // also those that were answered with UNAVAILABLE

  void connect(host::HostAgent* agent) {
    agent_ = agent;
    if (agent == nullptr) return;
    peer::HostView view;
    view.set_whole(true);
    for (const auto& [name, device] : core.state().devices) *view.add_devices() = device;
    for (const auto& [id, request] : core.state().requests) {
      if (request.start().host_id() == "here") *view.add_requests() = request;
    }
    agent->on_view(view);
    agent->coordinator_active();
  }

  // What another host says.
  command::Reply apply(const command::Command& command) {
    lease::Decision decision = core.apply(command, {1'000'000});
    peer::HostView view;
    for (const lease::Change& change : decision.changes) {
      const auto [kind, name] = split(change.key);
      if (kind == lease::kDevicePrefix) *view.add_devices() = core.state().devices.at(name);
      if (kind != lease::kRequestPrefix) continue;
      if (!change.value) {
        view.add_ended_requests(name);
      } else if (core.state().requests.at(name).start().host_id() == "here") {
        *view.add_requests() = core.state().requests.at(name);
      }
    }
    if (agent_ == nullptr) return decision.reply;
    agent_->on_view(view);
    for (const lease::Settled& settled : decision.settled) agent_->on_settled(settled.request_id, settled.reply);
    return decision.reply;
  }

  void submit(command::Command command, std::function<void(command::Reply)> reply) override {
    submitted.push_back(command);
    command::Reply unavailable;
    unavailable.mutable_status()->set_code(command::CODE_UNAVAILABLE);
    post([this, command, reply = std::move(reply), unavailable, away = away] {
      reply(away ? unavailable : apply(command));
    });
  }

  void renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) override {
    if (silent) return;
    post([this, renewal, answer = std::move(answer)] {
      peer::RenewalAnswer out;
      out.set_seq(renewal.seq());
      out.mutable_status()->set_code(command::CODE_OK);
      lease::Fences fences;
      fences.observe_all(core.state());
      lease::fill_answer(core.state(), fences, renewal, out);
      answer(out);
    });
  }

  // Another host, with a device that is there.
  void add_home(const std::string& host, const std::string& device) {
    command::Command registered;
    registered.mutable_register_host()->mutable_host()->set_id(host);
    registered.mutable_register_host()->mutable_host()->set_boot_id(kOtherBootId);
    registered.mutable_register_host()->set_has_floors(true);
    ck_assert_int_eq(apply(registered).status().code(), command::CODE_OK);
    command::Command report;
    report.mutable_report_device()->set_device(device);
    record::Presence& presence = *report.mutable_report_device()->mutable_presence();
    presence.mutable_instance()->set_host_id(host);
    presence.mutable_instance()->set_boot_id(kOtherBootId);
    presence.mutable_instance()->set_counter(1);
    presence.set_present(true);
    ck_assert_int_eq(apply(report).status().code(), command::CODE_OK);
  }

  // "free", or the phase of the lease: "granted", "revoking", "fencing".
  [[nodiscard]] std::string phase(const std::string& device) const {
    const auto found = core.state().devices.find(device);
    if (found == core.state().devices.end()) return "unknown";
    if (!found->second.has_lease()) return "free";
    switch (found->second.lease().phase()) {
      case record::PHASE_GRANTED:
        return "granted";
      case record::PHASE_REVOKING:
        return "revoking";
      default:
        return "fencing";
    }
  }

 private:
  static std::pair<std::string, std::string> split(const std::string& key) {
    const auto slash = key.find('/');
    return slash == std::string::npos ? std::pair(key, std::string())
                                      : std::pair(key.substr(0, slash + 1), key.substr(slash + 1));
  }
  host::HostAgent* agent_ = nullptr;
};

class FakeHypervisor : public host::Hypervisor {
 public:
  host::HypervisorEvents events;
  std::vector<Done<host::Guest>> finding;
  std::vector<Done<void>> attaching;
  std::vector<std::string> detached;   // devices
  std::vector<std::string> destroyed;  // guests
  std::vector<host::UsbAddress> usb_attached;
  std::vector<host::UsbAddress> usb_detached;
  bool hangs = false;  // detaching does not end

  void start(host::HypervisorEvents wanted) override { events = std::move(wanted); }
  void find_guest(std::string /*guest*/, Done<host::Guest> done) override { finding.push_back(std::move(done)); }
  void list_guests(Done<std::vector<host::Guest>> done) override { done(std::vector<host::Guest>()); }
  void attach_endpoint(std::string /*guest*/, std::string /*device*/, std::string /*path*/, Done<void> done) override {
    attaching.push_back(std::move(done));
  }
  void attach_usb(std::string /*guest*/, std::string /*device*/, host::UsbAddress address, Done<void> done) override {
    usb_attached.push_back(address);
    attaching.push_back(std::move(done));
  }
  void detach_usb(std::string /*guest*/, host::UsbAddress address, Done<void> done) override {
    usb_detached.push_back(address);
    if (!hangs) post([done = std::move(done)] { done({}); });
  }
  void destroy(std::string guest, Done<void> done) override {
    destroyed.push_back(guest);
    post([done = std::move(done)] { done({}); });
  }
  void detach(std::string /*guest*/, std::string device, Done<void> done) override {
    detached.push_back(device);
    if (hangs) return;
    post([done = std::move(done)] { done({}); });
  }
  void assign(std::string /*guest*/, Assignment /*assignment*/, bool /*remove*/, Done<bool> done) override {
    done(true);
  }
  [[nodiscard]] bool is_connected() const override { return true; }
  [[nodiscard]] std::string describe() const override { return "fake"; }
};

// A running guest "web" of this host; libvirt's PID files are in directory.path("libvirt").
inline host::Guest running_guest(int domain_id = 5) {
  host::Guest guest;
  guest.uuid = kGuestUuid;
  guest.name = "web";
  guest.running = true;
  guest.domain_id = domain_id;
  return guest;
}

class AgentFixture {
 public:
  // `devices`: as in the configuration.
  // `usb`: of whoever has devices on the bus.
  explicit AgentFixture(std::vector<DeviceConfig> devices = {}, std::vector<record::Rung> has = {},
                        host::UsbGate* usb = nullptr)
      : rungs(std::move(has)), gate(usb) {
    config_.host_id = "here";
    config_.run_dir = directory.path("run");
    config_.libvirt_run_dir = directory.path("libvirt");
    config_.devices = std::move(devices);
    for (const std::string& path : {config_.run_dir, config_.run_dir + "/relays", config_.libvirt_run_dir})
      ck_assert_int_eq(g_mkdir_with_parents(path.c_str(), 0755), 0);
    auto opened = host::HomeFile::open(directory.path("home"), "here");
    ck_assert(opened.has_value());
    home_file = std::move(*opened);
    make_agent();
  }

  // As a new daemon does: with the record, without anything that was in memory.
  void make_agent() {
    coordinator.connect(nullptr);
    agent.reset();
    hypervisor = std::make_unique<FakeHypervisor>();
    record::Host self;
    self.set_id("here");
    self.set_boot_id(kBootId);
    for (const record::Rung rung : rungs) self.add_rungs(rung);
    host::RelayOptions relays;
    relays.run_dir = config_.run_dir;
    relays.uid = geteuid();
    relays.gid = getegid();
#ifdef USBLEASE_RELAY
    relays.relay_path = USBLEASE_RELAY;
#endif
    agent = std::make_unique<host::HostAgent>(config_, self, coordinator, *hypervisor, *home_file, relays, gate,
                                              directory.path("module"));
  }

  // The same, with another configuration.
  void make_agent(std::vector<DeviceConfig> devices) {
    coordinator.connect(nullptr);
    agent.reset();
    config_.devices = std::move(devices);
    make_agent();
  }

  // Registered, and in touch with libvirt.
  void start() {
    coordinator.connect(agent.get());
    agent->start();
    ck_assert(run_until([&] { return static_cast<bool>(hypervisor->events.connected); }));
    const auto& hosts = coordinator.core.state().hosts;
    ck_assert(run_until([&] { return hosts.contains("here"); }));
    run_posted();
  }

  [[nodiscard]] std::string pid_file() const { return config_.libvirt_run_dir + "/web.pid"; }
  [[nodiscard]] std::string socket(const std::string& device) const {
    return guest_socket_path(config_.run_dir, kGuestUuid, device);
  }
  [[nodiscard]] std::string lease_page(const std::string& device) const {
    return lease_page::redir_page_path(config_.run_dir, kGuestUuid, device);
  }
  [[nodiscard]] bool phase_becomes(const std::string& device, const std::string& phase) const {
    return run_until([&] { return coordinator.phase(device) == phase; });
  }

  [[nodiscard]] api::HookCall hook_call(const std::string& operation, int domain_id) const {
    api::HookCall call;
    call.set_operation(operation);
    call.set_guest_uuid(kGuestUuid);
    call.set_guest_name("web");
    call.set_domain_id(domain_id);
    call.set_invoked_boottime_ns(boottime_now_ns());
    call.set_deadline_ms(10'000);
    call.set_libvirtd_pid(getpid());
    call.set_libvirtd_start_ticks(*process_start_ticks(getpid()));
    return call;
  }

  TemporaryDirectory directory;
  const std::vector<record::Rung> rungs;
  host::UsbGate* const gate;
  FakeCoordinator coordinator;
  std::unique_ptr<host::HomeFile> home_file;
  std::unique_ptr<FakeHypervisor> hypervisor;
  std::unique_ptr<host::HostAgent> agent;

 private:
  Config config_;
};

}  // namespace usblease::test
