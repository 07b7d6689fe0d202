// The invariant, where it counts: at the device. Hosts that arm, renew, fence, crash, freeze, reboot and come back, a
// network that delays, repeats and reorders, clocks that run apart, coordinators that change; after every step: only
// the holder of the record's lease can complete a transfer, and tokens at the device never decrease.
#include <rapidcheck.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>

#include "daemon/lease/agenda.h"
#include "daemon/lease/coordinator_session.h"
#include "daemon/lease/host_session.h"
#include "tests/unit/lease/op.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;
using command::Command;

constexpr int kHosts = 3;
constexpr int kDevices = 3;
constexpr Timing kTiming;
constexpr std::uint32_t kLocalIsolationMs = 300'000;
constexpr std::uint64_t kFirstReading = 1'000'000 * kNsPerMs;

std::string host_name(int n) { return "h" + std::to_string(n % kHosts); }
std::string device_name(int n) { return "d" + std::to_string(n % kDevices); }
bool roams(const std::string& device) { return device == "d1"; }

// What a home keeps on disk.
struct FloorFile {
  std::uint64_t armed = 0;
  std::uint64_t fenced = 0;
  record::Instance instance;  // that `armed` was armed on
};

// What enforces without the daemon: the kernel's entry for one device of one host.
struct Entry {
  std::uint64_t token = 0;
  std::uint64_t deadline_ns = 0;  // of the host's clock
};

struct ModelHost {
  std::string id;
  std::int64_t drift_ppm = 0;
  int boot = 1;
  bool powered = true;
  bool daemon = true;  // running, neither dead nor frozen
  bool registered = false;
  std::uint64_t counter = 0;                     // durable
  std::map<std::string, FloorFile> floors;       // durable
  std::map<std::string, std::uint64_t> plugged;  // device → counter of its enumeration
  std::map<std::string, Entry> kernel;
  std::map<std::string, record::Device> view;  // as last pushed; may be old
  std::optional<HostSession> session;

  [[nodiscard]] std::uint64_t clock_ns(std::uint64_t real_ns) const {
    return kFirstReading + real_ns +
           static_cast<std::uint64_t>(static_cast<std::int64_t>(real_ns / 1'000'000) * drift_ppm);
  }
  [[nodiscard]] record::Instance instance(const std::string& device) const {
    record::Instance out;
    out.set_host_id(id);
    out.set_boot_id(boot_of(id, boot));
    out.set_counter(plugged.contains(device) ? plugged.at(device) : counter);
    return out;
  }
};

class Cluster {
 public:
  Cluster() : core_(make_state("model")) {
    for (int i = 0; i < kHosts; ++i) {
      ModelHost& host = hosts_[host_name(i)];
      host.id = host_name(i);
      host.drift_ppm = (i - 1) * 250;
      begin_daemon(host);
    }
    for (int i = 0; i < kDevices; ++i) plug(device_name(i), hosts_.at(host_name(i)));
    elect();
    for (auto& [id, host] : hosts_) sync(host);
    deliver_all();
    for (auto& [id, host] : hosts_) sync(host);
    deliver_all();
  }

  // --- steps -----------------------------------------------------------------------------------------

  void pass(std::uint64_t ms) {
    // In small steps, so that what is due happens about when it is due.
    for (const std::uint64_t end_ns = real_ns_ + ms * kNsPerMs; real_ns_ < end_ns;) {
      real_ns_ = std::min(end_ns, real_ns_ + 500 * kNsPerMs);
      tick();
      check();
    }
  }

  void client(Command command) { pending_.push_back(std::move(command)); }

  // A running daemon does all of its work once.
  void work(ModelHost& host) {
    if (!host.powered || !host.daemon) return;
    if (!host.registered) return register_host(host);
    for (const auto& [name, device] : std::map(host.view)) act(host, device);
    Sent& sent = renewals_.emplace_back();
    sent.host = host.id;
    sent.renewal = host.session->renew(host.clock_ns(real_ns_));
  }

  void sync(ModelHost& host) {
    if (!host.powered || !host.daemon) return;
    work(host);
    for (const auto& [name, device] : core_.state().devices) host.view[name] = device;
    for (int i = 0; i < kDevices; ++i) report(host, device_name(i));
  }

  // One message of those under way, in any order; it may come again.
  void deliver(std::uint8_t which, bool again) {
    if (pending_.empty()) return;
    const std::size_t i = which % pending_.size();
    const Command command = pending_[i];
    if (!again) pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
    apply(command);
  }
  void lose(std::uint8_t which) {
    if (!pending_.empty()) pending_.erase(pending_.begin() + which % static_cast<std::ptrdiff_t>(pending_.size()));
  }
  void deliver_all() {
    while (!pending_.empty()) deliver(0, false);
    while (!renewals_.empty()) answer(0);
    while (!answers_.empty()) receive(0);
  }

  void answer(std::uint8_t which) {
    if (renewals_.empty()) return;
    const auto at = renewals_.begin() + which % static_cast<std::ptrdiff_t>(renewals_.size());
    const Sent sent = *at;
    renewals_.erase(at);
    const record::Host* known = core_.state().hosts.contains(sent.host) ? &core_.state().hosts.at(sent.host) : nullptr;
    Answered& out = answers_.emplace_back();
    out.host = sent.host;
    out.boot_id = sent.renewal.boot_id();
    out.answer.set_seq(sent.renewal.seq());
    const bool session = known != nullptr && !known->gone() && known->boot_id() == sent.renewal.boot_id();
    out.answer.mutable_status()->set_code(session ? command::CODE_OK : command::CODE_NOT_FOUND);
    if (!session) return;
    check_fences();
    fill_answer(core_.state(), fences_, sent.renewal, out.answer);
    sessions_->answered(sent.host, sent.renewal.boot_id(), coordinator_ns());
  }

  void receive(std::uint8_t which) {
    if (answers_.empty()) return;
    const auto at = answers_.begin() + which % static_cast<std::ptrdiff_t>(answers_.size());
    const Answered got = *at;
    answers_.erase(at);
    ModelHost& host = hosts_.at(got.host);
    if (!host.powered || !host.daemon || got.boot_id != boot_of(host.id, host.boot)) return;
    if (got.answer.status().code() == command::CODE_NOT_FOUND) host.registered = false;
    const auto orders = host.session->answer(got.answer);
    for (const auto& [lease, deadline_ns] : orders.deadlines) {
      const auto entry = host.kernel.find(lease.first);
      if (entry != host.kernel.end() && entry->second.token == lease.second) entry->second.deadline_ns = deadline_ns;
    }
    for (const auto& [device, token] : orders.fence) fence(host, device, token);
  }

  void plug(const std::string& device, ModelHost& host) {
    if (!host.powered || host.plugged.contains(device)) return;
    for (auto& [id, other] : hosts_) unplug(device, other);
    host.plugged[device] = ++host.counter;
  }

  // The kernel of the host notices at once; its daemon says so when it can.
  void unplug(const std::string& device, ModelHost& host) {
    host.plugged.erase(device);
    host.kernel.erase(device);
  }

  void power_off(ModelHost& host) {
    host.powered = false;
    host.daemon = false;
    host.kernel.clear();
  }
  void boot(ModelHost& host) {
    power_off(host);
    host.powered = true;
    ++host.boot;
    for (auto& [device, counter] : host.plugged) counter = ++host.counter;
    begin_daemon(host);
  }
  void stop_daemon(ModelHost& host) { host.daemon = false; }  // killed or frozen: the kernel's entries stay
  void start_daemon(ModelHost& host) {
    if (host.powered && !host.daemon) begin_daemon(host);
  }

  void declare_dead_if_off(const ModelHost& host) {
    if (host.powered) return;  // an operator who lies is outside of the argument
    Command command;
    command.mutable_declare_dead()->set_host_id(host.id);
    apply(command);
  }

  // A new coordinator reads the store and knows no renewals. What was under way to the old one may still arrive.
  void elect() {
    const auto state = load(entries_of(core_.state()));
    if (!state) RC_FAIL(state.error().message);
    core_ = Core(*state);
    sessions_.emplace(kTiming, coordinator_ns());
    agenda_ = Agenda();
    check_fences();
    fences_.observe_all(core_.state());
    for (const Change& change : encode(core_.state())) agenda_.observe(core_.state(), change.key, coordinator_ns());
  }

  // A guest that has the device open tries a transfer on it.
  void transfer(const std::string& device, ModelHost& host) {
    const auto entry = host.kernel.find(device);
    if (entry == host.kernel.end() || !works(host, device, entry->second)) return;
    RC_ASSERT(entry->second.token >= transferred_[device]);
    RC_ASSERT(entry->second.token > confirmed_[device]);
    transferred_[device] = entry->second.token;
    ++transfers_;
  }

  ModelHost& host(int n) { return hosts_.at(host_name(n)); }
  [[nodiscard]] const State& state() const { return core_.state(); }
  [[nodiscard]] int transfers() const { return transfers_; }

  // At every instant: who could transfer has the record's lease.
  void check() {
    for (int i = 0; i < kDevices; ++i) {
      const std::string device = device_name(i);
      for (const auto& [id, host] : hosts_) {
        const auto entry = host.kernel.find(device);
        if (entry == host.kernel.end() || !works(host, device, entry->second)) continue;
        RC_ASSERT(core_.state().devices.at(device).has_lease());
        RC_ASSERT(core_.state().devices.at(device).lease().token() == entry->second.token);
      }
    }
  }

 private:
  struct Sent {
    std::string host;
    peer::Renewal renewal;
  };
  struct Answered {
    std::string host;
    std::string boot_id;
    peer::RenewalAnswer answer;
  };

  [[nodiscard]] std::uint64_t coordinator_ns() const { return kFirstReading + real_ns_; }

  [[nodiscard]] bool works(const ModelHost& host, const std::string& device, const Entry& entry) const {
    return host.powered && host.plugged.contains(device) && host.clock_ns(real_ns_) < entry.deadline_ns;
  }

  // Kept up change by change it is what a look at all devices gives.
  void check_fences() const {
    Fences all;
    all.observe_all(core_.state());
    for (const auto& [id, host] : hosts_) RC_ASSERT(fences_.at(id) == all.at(id));
  }

  void apply(const Command& command) {
    const Decision decision = core_.apply(command, Context{1'000 + real_ns_ / (1'000 * kNsPerMs)});
    for (const Change& change : decision.changes) {
      agenda_.observe(core_.state(), change.key, coordinator_ns());
      fences_.observe(core_.state(), change.key);
    }
    const bool done = decision.reply.status().code() == command::CODE_OK;
    if (done && command.has_confirm_fenced()) {
      std::uint64_t& confirmed = confirmed_[command.confirm_fenced().device()];
      confirmed = std::max(confirmed, command.confirm_fenced().token());
    }
    if (command.has_register_host()) {
      ModelHost& host = hosts_.at(command.register_host().host().id());
      const bool of_now = command.register_host().host().boot_id() == boot_of(host.id, host.boot);
      if (done) sessions_->answered(host.id, command.register_host().host().boot_id(), coordinator_ns());
      if (done && of_now && host.daemon) host.registered = true;
    }
    check();
  }

  void tick() {
    for (const Command& command : agenda_.due(coordinator_ns(), 1'000 + real_ns_ / (1'000 * kNsPerMs))) apply(command);
    for (const auto& gone : sessions_->gone(core_.state(), coordinator_ns())) {
      Command command;
      command.mutable_host_gone()->set_host_id(gone.host_id);
      command.mutable_host_gone()->set_boot_id(gone.boot_id);
      apply(command);
    }
  }

  void begin_daemon(ModelHost& host) {
    host.daemon = true;
    host.registered = false;
    host.view.clear();
    host.session.emplace(kTiming, host.id, boot_of(host.id, host.boot), "machine-" + host.id);
    // What the kernel still enforces is armed as far as the session is concerned.
    for (const auto& [device, entry] : host.kernel) host.session->arm({device, entry.token}, kTiming.ttl_ms);
  }

  void register_host(ModelHost& host) {
    Command command;
    command::RegisterHost& c = *command.mutable_register_host();
    c.mutable_host()->set_id(host.id);
    c.mutable_host()->set_boot_id(boot_of(host.id, host.boot));
    c.mutable_host()->set_machine_uuid("machine-" + host.id);
    c.mutable_host()->add_rungs(record::RUNG_UNBIND);
    c.set_has_floors(true);
    for (const auto& [device, file] : host.floors) {
      command::Floor& floor = *c.add_floors();
      floor.set_device(device);
      floor.set_armed(file.armed);
      floor.set_fenced(file.fenced);
      floor.set_instance(file.instance.counter());
      floor.set_boot_id(file.instance.boot_id().empty() ? boot_of(host.id, host.boot) : file.instance.boot_id());
    }
    pending_.push_back(command);
  }

  void report(ModelHost& host, const std::string& device) {
    if (!host.registered) return;
    Command command;
    command::ReportDevice& c = *command.mutable_report_device();
    c.set_device(device);
    *c.mutable_presence()->mutable_instance() = host.instance(device);
    c.mutable_presence()->set_present(host.plugged.contains(device));
    c.mutable_presence()->mutable_identity()->set_kind(record::DEVICE_KIND_USB);
    c.mutable_policy()->set_roams(roams(device));
    pending_.push_back(command);
  }

  void act(ModelHost& host, const record::Device& device) {
    if (!device.has_lease() || device.lease().instance().host_id() != host.id) return;
    const record::Lease& lease = device.lease();
    if (lease.phase() == record::PHASE_FENCING) return fence(host, device.name(), lease.token());
    arm(host, device.name(), lease);
  }

  void arm(ModelHost& host, const std::string& device, const record::Lease& lease) {
    FloorFile& floor = host.floors[device];
    const auto entry = host.kernel.find(device);
    if (entry != host.kernel.end() && entry->second.token >= lease.token()) return;
    if (!host.plugged.contains(device) || lease.token() <= floor.fenced || lease.token() < floor.armed) return;
    if (lease.instance().SerializeAsString() != host.instance(device).SerializeAsString()) return;
    if (entry != host.kernel.end()) fence(host, device, entry->second.token);
    const bool local = lease.start().host_id() == host.id && !roams(device);
    const DeviceToken key{device, lease.token()};
    floor.armed = lease.token();  // on disk first
    floor.instance = lease.instance();
    host.session->arm(key, local ? kLocalIsolationMs : kTiming.ttl_ms);
    host.kernel[device] = {lease.token(), host.session->deadline(key)};
  }

  void fence(ModelHost& host, const std::string& device, std::uint64_t token) {
    FloorFile& floor = host.floors[device];
    const auto entry = host.kernel.find(device);
    if (entry != host.kernel.end() && entry->second.token <= token) host.kernel.erase(entry);
    host.session->disarm({device, token});
    floor.fenced = std::max(floor.fenced, token);  // on disk before it is confirmed
    Command command;
    command::ConfirmFenced& c = *command.mutable_confirm_fenced();
    c.set_device(device);
    c.set_token(token);
    c.set_how("model");
    const auto seen = host.view.find(device);
    const bool leased = seen != host.view.end() && seen->second.has_lease() && seen->second.lease().token() == token;
    *c.mutable_instance() = leased                 ? seen->second.lease().instance()
                            : floor.armed == token ? floor.instance
                                                   : host.instance(device);
    pending_.push_back(command);
  }

  Core core_;
  Fences fences_;
  std::optional<CoordinatorSessions> sessions_;
  Agenda agenda_;
  std::map<std::string, ModelHost> hosts_;
  std::vector<Command> pending_;
  std::vector<Sent> renewals_;
  std::vector<Answered> answers_;
  std::uint64_t real_ns_ = 0;
  std::map<std::string, std::uint64_t> transferred_;  // greatest token that completed a transfer
  std::map<std::string, std::uint64_t> confirmed_;    // greatest token confirmed fenced
  int transfers_ = 0;
};

// --- arbitrary steps ---------------------------------------------------------------------------------

Command acquire(const Cluster& cluster, const Op& op, int number) {
  Command command;
  command::Acquire& c = *command.mutable_acquire();
  c.set_request_id("r" + std::to_string(number));
  const std::string host = host_name(op.a);
  const auto known = cluster.state().hosts.find(host);
  *c.mutable_start() = start_of("g" + std::to_string(op.b % 3), host, number);
  if (known != cluster.state().hosts.end()) c.mutable_start()->set_boot_id(known->second.boot_id());
  c.set_guest_name("g" + std::to_string(op.b % 3));
  c.add_devices(device_name(op.b / 3));
  if (op.b % 7 == 0) c.add_devices(device_name(op.b / 3 + 1));
  c.set_wait_ms(600'000);
  return command;
}

Command revoke(const Op& op) {
  Command command;
  command.mutable_revoke()->set_device(device_name(op.a));
  command.mutable_revoke()->set_grace_ms(op.b % 4 * 1'000);
  return command;
}

Command release(const Cluster& cluster, const Op& op) {
  const auto& device = cluster.state().devices.at(device_name(op.a));
  Command command;
  *command.mutable_release()->mutable_start() =
      device.has_lease() ? device.lease().start() : start_of("g0", host_name(op.b));
  return command;
}

void step(Cluster& cluster, const Op& op, int number) {
  const int kind = op.kind % 64;
  ModelHost& host = cluster.host(op.a);
  if (kind < 8) {
    cluster.client(acquire(cluster, op, number));
    if (op.b % 2 == 0) cluster.deliver_all();
  } else if (kind < 11) {
    cluster.client(op.b % 2 == 0 ? revoke(op) : release(cluster, op));
  } else if (kind < 22) {
    cluster.sync(host);
    if (op.b % 3 != 0) cluster.deliver_all();
  } else if (kind < 26) {
    cluster.work(host);
  } else if (kind < 36) {
    cluster.deliver(op.a, op.b % 8 == 0);
  } else if (kind < 37) {
    cluster.lose(op.a);
  } else if (kind < 41) {
    cluster.answer(op.a);
  } else if (kind < 45) {
    cluster.receive(op.a);
  } else if (kind < 49) {
    cluster.pass(op.b % 4 == 0 ? 15'000 : 1'000 + op.a * 10U);
  } else if (kind < 52) {
    cluster.plug(device_name(op.b), host);
  } else if (kind < 53) {
    cluster.unplug(device_name(op.b), host);
  } else if (kind < 55) {
    cluster.stop_daemon(host);
  } else if (kind < 58) {
    cluster.start_daemon(host);
  } else if (kind < 59) {
    cluster.boot(host);
  } else if (kind < 60) {
    cluster.power_off(host);
  } else if (kind < 61) {
    cluster.declare_dead_if_off(host);
  } else if (kind < 62) {
    cluster.boot(host);
  } else {
    cluster.elect();
  }
  cluster.check();
  for (int d = 0; d < kDevices; ++d) {
    for (int h = 0; h < kHosts; ++h) cluster.transfer(device_name(d), cluster.host(h));
  }
}

void only_the_holder_can_transfer() {
  const auto ops = *any_ops(100, 2);
  Cluster cluster;
  int number = 0;
  // The devices are in use, and somebody waits for each of them.
  for (std::uint8_t i = 0; i < 2 * kDevices; ++i) {
    cluster.client(
        acquire(cluster, {0, static_cast<std::uint8_t>(i / 2), static_cast<std::uint8_t>(3 * i + 1)}, ++number));
  }
  cluster.deliver_all();
  for (int i = 0; i < 3 * kHosts; ++i) {
    cluster.sync(cluster.host(i));
    cluster.deliver_all();
  }
  for (const Op& op : ops) step(cluster, op, ++number);
  RC_CLASSIFY(cluster.transfers() > 0, "transfers");
  RC_CLASSIFY(cluster.transfers() > 50, "many transfers");
}

START_TEST(enforcement) {
  ck_assert(rc::check("only the holder of the lease can transfer", only_the_holder_can_transfer));
}
END_TEST

// The model itself must be able to serve: without faults every request is granted in turn and every guest can transfer.
START_TEST(without_faults_everybody_is_served) {
  Cluster cluster;
  for (int i = 0; i < 9; ++i)
    cluster.client(acquire(cluster, {0, static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(3 * i)}, i));
  cluster.deliver_all();
  for (int round = 0; round < 60; ++round) {
    for (int h = 0; h < kHosts; ++h) cluster.sync(cluster.host(h));
    cluster.deliver_all();
    for (int d = 0; d < kDevices; ++d) {
      for (int h = 0; h < kHosts; ++h) cluster.transfer(device_name(d), cluster.host(h));
    }
    if (round % 4 == 3) cluster.client(release(cluster, {0, static_cast<std::uint8_t>(round / 4), 0}));
    cluster.pass(1'000);
  }
  ck_assert(cluster.state().requests.empty());
  ck_assert_int_gt(cluster.transfers(), 30);
}
END_TEST

}  // namespace

int main() {
  setenv("RC_PARAMS", "max_success=1000", 0);
  return run_suite("enforcement", {without_faults_everybody_is_served, enforcement}, 300);
}
