#include "tests/sim/world.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/boottime.h"
#include "common/text.h"
#include "daemon/lease/keys.h"
#include "tests/sim/checks.h"
#include "tests/sim/daemon.h"

namespace usblease::sim {
namespace {

World* g_world = nullptr;

std::string make_uuid(Chance& chance) {
  char text[40];
  std::snprintf(text, sizeof text, "%08llx-%04llx-4%03llx-8%03llx-%012llx",
                static_cast<unsigned long long>(chance.below(1ULL << 32)),
                static_cast<unsigned long long>(chance.below(1ULL << 16)),
                static_cast<unsigned long long>(chance.below(1ULL << 12)),
                static_cast<unsigned long long>(chance.below(1ULL << 12)),
                static_cast<unsigned long long>(chance.below(1ULL << 48)));
  return text;
}

Config make_config(const std::string& host, const WorldOptions& options) {
  Config config;
  config.host_id = host;
  config.ttl_ms = options.timing.ttl_ms;
  config.renewal_ms = options.timing.renewal_ms;
  config.grace_ms = options.timing.grace_ms;
  config.drift_ppm = options.timing.drift_ppm;
  return config;
}

}  // namespace

World::World(Kernel& kernel, const WorldOptions& options)
    : kernel_(kernel), options_(options), store_(kernel), network_(kernel), checks_(std::make_unique<Checks>(*this)) {
  g_world = this;
  store_.committed = [this](const Committed& what) { checks_->committed(what); };
  store_.applied = [this] { checks_->compare_states(); };
  store_.reachable = [this](const Process& process) { return !cut_from_store.contains(process.machine->id); };
  network_.powered = [this](const std::string& host) { return hosts_.at(host).powered; };
  Chance& chance = kernel_.chance();
  for (std::uint32_t i = 1; i <= options_.hosts; ++i) {
    const std::string id = "h" + std::to_string(i);
    HostState& host = hosts_[id];
    host.machine = &kernel_.add_machine(id);
    host.machine->boot_id = make_uuid(chance);
    host.machine->booted_local_ns = chance.below(1'000 * kSecond) + kSecond;
    host.machine->rate_ppm =
        static_cast<std::int64_t>(chance.below(options_.timing.drift_ppm / 2 + 1)) * 2 - options_.timing.drift_ppm / 2;
    host.machine_uuid = make_uuid(chance);
    host.candidate = i <= options_.candidates;
    host.config = make_config(id, options_);
    for (std::uint32_t g = 0; g < options_.guests_per_host; ++g) {
      Guest guest;
      guest.name = "g" + std::to_string(i) + static_cast<char>('a' + g);
      guest.uuid = make_uuid(chance);
      guest.host_id = id;
      guests_[guest.name] = guest;
    }
  }
  for (std::uint32_t d = 1; d <= options_.devices; ++d) {
    const std::string name = "d" + std::to_string(d);
    devices_[name] = std::make_unique<Device>(kernel_, name);
    HostState& home = hosts_["h" + std::to_string((d - 1) % options_.hosts + 1)];
    home.devices.insert(name);
    DeviceConfig& config = home.config.devices.emplace_back();
    config.name = name;
    config.endpoint = "unix:/dev/" + name;
    if (d == options_.devices) config.isolation_ms = options_.isolation_ms;
  }
}

World::~World() {
  for (auto& [id, host] : hosts_) end_daemon(host);
  g_world = nullptr;
}

World& World::get() { return *g_world; }

// --- The network -----------------------------------------------------------------------------------

void World::partition(const std::vector<std::string>& side, bool one_way, bool with_store) {
  std::string names;
  for (const std::string& in : side) {
    names += (names.empty() ? "" : ", ") + in;
    if (with_store) cut_from_store.insert(in);
    for (const auto& [out, host] : hosts_) {
      if (std::find(side.begin(), side.end(), out) != side.end()) continue;
      network_.cut.insert({in, out});
      if (!one_way) network_.cut.insert({out, in});
    }
  }
  kernel_.trace("world", "cut off " + names + (one_way ? " one way" : "") + (with_store ? ", from the store too" : ""));
}

void World::heal() {
  network_.cut.clear();
  cut_from_store.clear();
  kernel_.trace("world", "the network is whole");
}

// --- Machines and daemons --------------------------------------------------------------------------

void World::start_daemon(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (!host.powered || host.daemon) return;
  host.daemon_process = &kernel_.add_process(*host.machine, id);
  kernel_.trace("world", "usbleased of " + id + " starts");
  host.daemon = std::make_unique<Daemon>(*this, host, *host.daemon_process);
  bool runs = false;
  kernel_.run_in(host.daemon_process, [&] {
    const auto started = host.daemon->start();
    runs = started.has_value();
    if (runs) return;
    kernel_.trace(id, "! cannot start: " + started.error().message);
    // What the message tells the operator to do.
    if (host.disk["home"].durable) {
      kernel_.trace("world", "an operator moves the home file of " + id + " away");
      host.disk.clear();
      checks_->home_forgot();
    }
    kernel_.after(kSecond, nullptr, [this, id] { start_daemon(id); });
  });
  if (!runs) end_daemon(host);
}

void World::end_daemon(HostState& host) {
  if (!host.daemon) return;
  kernel_.kill(*host.daemon_process);
  host.guest_socket = nullptr;
  kernel_.run_in(host.daemon_process, [&] { host.daemon->die(); });
  host.daemon.reset();
  // The write that was under way reached the disk, or did not.
  for (auto& [path, file] : host.disk) {
    if (file.pending && kernel_.chance().permille(500)) file.durable = file.pending;
    file.pending.reset();
  }
}

void World::kill_daemon(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (!host.daemon) return;
  kernel_.trace("world", "usbleased of " + id + " is killed");
  end_daemon(host);
}

void World::freeze_daemon(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (!host.daemon) return;
  kernel_.trace("world", "usbleased of " + id + " freezes");
  kernel_.freeze(*host.daemon_process);
}

void World::thaw_daemon(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (!host.daemon) return;
  kernel_.trace("world", "usbleased of " + id + " thaws");
  kernel_.thaw(*host.daemon_process);
}

void World::freeze_host(const std::string& id) {
  kernel_.trace("world", id + " freezes");
  kernel_.freeze(*hosts_.at(id).machine);
}

void World::thaw_host(const std::string& id) {
  kernel_.trace("world", id + " thaws");
  kernel_.thaw(*hosts_.at(id).machine);
}

void World::power_off(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (!host.powered) return;
  kernel_.trace("world", id + " loses power");
  host.powered = false;
  end_daemon(host);
  host.machine->frozen = false;
  for (auto& [key, relay] : host.relays) {
    relay->die(kernel_.chance().below(3 * kSecond));
    host.gone_relays.push_back(std::move(relay));
  }
  host.relays.clear();
  host.pages.clear();
  for (auto& [name, guest] : guests_) {
    if (guest.host_id != id || guest.qemu == nullptr) continue;
    kernel_.kill(*guest.qemu);
    guest.qemu = nullptr;
    guest.attached.clear();
    guest.connections.clear();
  }
}

void World::power_on(const std::string& id) {
  HostState& host = hosts_.at(id);
  if (host.powered) return;
  kernel_.trace("world", id + " boots");
  host.powered = true;
  host.machine->boot_id = make_uuid(kernel_.chance());
  host.machine->booted_true_ns = kernel_.now();
  host.machine->booted_local_ns = 5 * kSecond;
  ++host.libvirt_started;
  start_daemon(id);
}

void World::lose_disk(const std::string& id) {
  kernel_.trace("world", id + " gets a new disk");
  hosts_.at(id).disk.clear();
  checks_->home_forgot();
}

void World::rot_home_file(const std::string& id, std::uint64_t bit) {
  auto& file = hosts_.at(id).disk["home"];
  if (!file.durable || file.durable->empty()) return;
  kernel_.trace("world", "a bit of the home file of " + id + " flips");
  char& byte = (*file.durable)[(bit / 8) % file.durable->size()];
  byte = static_cast<char>(byte ^ (1 << (bit % 8)));
}

// --- Relays and devices ----------------------------------------------------------------------------

namespace {

RelayProcess* relay_of(std::map<std::string, HostState>& hosts, const std::string& device) {
  for (auto& [id, host] : hosts) {
    for (auto& [key, relay] : host.relays) {
      if (key.first == device && relay->alive()) return relay.get();
    }
  }
  return nullptr;
}

}  // namespace

void World::kill_relay(const std::string& device) {
  RelayProcess* relay = relay_of(hosts_, device);
  if (relay == nullptr) return;
  kernel_.trace("world", relay->process().name + " is killed");
  relay->die();
}

void World::freeze_relay(const std::string& device) {
  RelayProcess* relay = relay_of(hosts_, device);
  if (relay == nullptr) return;
  kernel_.trace("world", relay->process().name + " freezes");
  kernel_.freeze(relay->process());
}

void World::thaw_relay(const std::string& device) {
  for (auto& [id, host] : hosts_) {
    for (auto& [key, relay] : host.relays) {
      if (key.first == device && relay->process().frozen) kernel_.thaw(relay->process());
    }
  }
}

void World::plug(const std::string& device) {
  kernel_.trace("world", device + " is plugged in");
  devices_.at(device)->plug();
}

void World::unplug(const std::string& device) {
  kernel_.trace("world", device + " is unplugged");
  devices_.at(device)->unplug();
}

// --- Guests ----------------------------------------------------------------------------------------

bool World::process_lives(int pid) const {
  const auto found = pids_.find(pid);
  return found != pids_.end() && !found->second->dead;
}

const Guest* World::guest_of_pid(int pid) const {
  for (const auto& [name, guest] : guests_) {
    if (guest.qemu != nullptr && guest.pid == pid) return &guest;
  }
  return nullptr;
}

Guest* World::guest_by_uuid(const std::string& uuid) {
  for (auto& [name, guest] : guests_) {
    if (guest.uuid == uuid) return &guest;
  }
  return nullptr;
}

void World::watch_process(int pid, Process* watcher, std::weak_ptr<std::function<void()>> callback) {
  exit_watchers_[pid].push_back({watcher, std::move(callback)});
}

bool World::connect_guest(const std::string& guest_uuid, const std::string& device) {
  Guest* guest = guest_by_uuid(guest_uuid);
  if (guest == nullptr || guest->qemu == nullptr) return false;
  HostState& host = hosts_.at(guest->host_id);
  if (!host.up() || !host.guest_socket) return false;
  bool connected = false;
  kernel_.run_in(host.daemon_process, [&] { connected = host.guest_socket(guest_uuid, device, guest->pid); });
  return connected;
}

// The hook: a process of its own, with its own patience, that libvirt waits for.
void World::hook(const std::string& name, const std::string& operation, const std::vector<std::string>& devices,
                 bool required, Ns invoked_ns, const std::function<void(bool)>& answer) {
  constexpr Ns kHookMs = 20'000;
  const Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  const bool must = operation == "prepare" || operation == "start";
  if (!host.up()) return answer(!must);
  api::HookCall call;
  call.set_operation(operation);
  call.set_guest_name(name);
  call.set_guest_uuid(guest.uuid);
  call.set_domain_id(operation == "stopped" || operation == "release" ? -1 : guest.domain_id);
  call.set_invoked_boottime_ns(invoked_ns);
  call.set_libvirtd_pid(1);
  call.set_libvirtd_start_ticks(1);
  call.set_deadline_ms(kHookMs);
  for (const std::string& device : devices) {
    api::Declared& declared = *call.add_devices();
    declared.set_device(device);
    declared.set_how(api::DECLARATION_METADATA);
    declared.set_required(required);
  }
  auto done = std::make_shared<bool>(false);
  const auto once = [this, answer, done](bool yes) {
    if (std::exchange(*done, true)) return;
    kernel_.after(0, nullptr, [answer, yes] { answer(yes); });
  };
  Process* process = host.daemon_process;
  kernel_.after(kMs, process, [&host, call, once] {
    host.daemon->agent().hook_calls().handle(
        call, "libvirt", [once](command::Code code, const std::string&) { once(code == command::CODE_OK); });
  });
  kernel_.after(kHookMs * kMs, nullptr, [this, &host, process, call, once, must, done] {
    if (*done) return;
    once(!must);
    kernel_.at(kernel_.now(), process, [&host, call] { host.daemon->agent().hook_calls().abandon(call); });
  });
}

void World::start_guest(const std::string& name, const std::vector<std::string>& devices, bool required) {
  Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  if (guest.qemu != nullptr || guest.starting || !host.powered || host.machine->frozen) return;
  guest.starting = true;
  guest.domain_id = host.next_domain_id++;
  std::string what;
  for (const std::string& device : devices) what += " " + device;
  kernel_.trace("world", "guest " + name + " starts on " + guest.host_id + (what.empty() ? "" : " with" + what));
  const std::string boot = host.machine->boot_id;
  const Ns invoked_ns = host.machine->local(kernel_.now());
  hook(name, "prepare", devices, required, invoked_ns, [this, name, devices, required, boot](bool yes) {
    HostState& there = hosts_.at(guests_.at(name).host_id);
    if (!there.powered || there.machine->boot_id != boot) {
      guests_.at(name).starting = false;
      return;
    }
    if (yes) return qemu_starts(name, devices, required, there.machine->local(kernel_.now()));
    kernel_.trace("world", "the start of guest " + name + " is refused");
    guests_.at(name).starting = false;
    hook(name, "release", {}, required, there.machine->local(kernel_.now()), [](bool) {});
  });
}

void World::qemu_starts(const std::string& name, const std::vector<std::string>& devices, bool required,
                        Ns invoked_ns) {
  Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  Process& qemu = kernel_.add_process(*host.machine, guest.host_id + "/qemu:" + name);
  guest.pid = next_pid_++;
  guest.qemu = &qemu;
  guest.starting = false;
  pids_[guest.pid] = &qemu;
  hook(name, "start", devices, required, invoked_ns, [this, name, devices, required, process = &qemu](bool yes) {
    Guest& started = guests_.at(name);
    if (started.qemu != process || process->dead) return;
    if (!yes) return stop_guest(name, false);
    HostState& there = hosts_.at(started.host_id);
    hook(name, "started", devices, required, there.machine->local(kernel_.now()), [](bool) {});
    if (!there.up()) return;
    kernel_.after(kMs, there.daemon_process,
                  [this, name, &there] { there.daemon->hypervisor().guest_started(guests_.at(name)); });
  });
}

void World::stop_guest(const std::string& name, bool crash) {
  Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  if (guest.qemu == nullptr || host.machine->frozen) return;
  kernel_.trace("world", "guest " + name + (crash ? " crashes" : " stops"));
  kernel_.kill(*guest.qemu);
  guest.qemu = nullptr;
  guest.attached.clear();
  for (auto& [device, connection] : std::exchange(guest.connections, {})) connection->guest_gone();
  const std::vector<ExitWatcher> watchers = std::exchange(exit_watchers_[guest.pid], {});
  for (const ExitWatcher& watcher : watchers) {
    kernel_.after(kMs / 10, watcher.watcher, [callback = watcher.callback] {
      if (const auto run = callback.lock()) (*run)();
    });
  }
  if (host.up()) {
    kernel_.after(kernel_.chance().below(20 * kMs), host.daemon_process,
                  [this, name, &host] { host.daemon->hypervisor().guest_stopped(guests_.at(name)); });
  }
  // The hooks may come very late: after the guest has been started again.
  const Ns invoked_ns = host.machine->local(kernel_.now());
  for (const char* operation : {"stopped", "release"}) {
    kernel_.after(kernel_.chance().below(2 * kSecond), nullptr,
                  [this, name, operation, invoked_ns] { hook(name, operation, {}, false, invoked_ns, [](bool) {}); });
  }
}

std::optional<std::string> World::coordinator() const {
  const auto value = store_.value(lease::kCoordinatorKey);
  record::Coordinator holder;
  if (!value || !holder.ParseFromString(*value)) return std::nullopt;
  const auto host = hosts_.find(holder.host_id());
  if (host == hosts_.end() || !host->second.up()) return std::nullopt;
  return holder.host_id();
}

// --- People ----------------------------------------------------------------------------------------

std::shared_ptr<Asked> World::ask(const std::string& what, const std::string& host, Ns patience) {
  auto asked = std::make_shared<Asked>();
  asked->what = what;
  asked->host_id = host;
  asked->by = hosts_.at(host).daemon_process;
  asked->answer_by = kernel_.now() + patience;
  asked_.push_back(asked);
  kernel_.trace("world", what);
  return asked;
}

void World::attach(const std::string& name, const std::vector<std::string>& devices, std::uint32_t wait_ms,
                   std::uint64_t duration_s, std::int32_t priority) {
  const Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  if (!host.up()) return;
  api::Attach request;
  request.set_request_id("r" + std::to_string(next_request_++));
  request.set_guest(name);
  request.set_wait_ms(wait_ms);
  request.set_duration_s(duration_s);
  request.set_priority(priority);
  priorities_[request.request_id()] = priority;
  std::string what = "attach " + name;
  for (const std::string& device : devices) {
    request.add_devices(device);
    what += " " + device;
  }
  const auto asked = ask(what + " (" + request.request_id() + ")", guest.host_id, wait_ms * kMs + 60 * kSecond);
  kernel_.after(0, host.daemon_process, [this, &host, request, asked] {
    host.daemon->agent().attach(request, "root", nullptr, [this, request, asked](const Result<command::Reply>& reply) {
      asked->answered = true;
      kernel_.trace("world", request.request_id() + (reply ? " has it" : ": " + reply.error().message));
      if (reply) checks_->acknowledged(*reply);
    });
  });
}

std::int32_t World::priority_of(const std::string& request_id) const {
  const auto found = priorities_.find(request_id);
  return found == priorities_.end() ? 0 : found->second;
}

void World::detach(const std::string& name, const std::string& device) {
  const Guest& guest = guests_.at(name);
  HostState& host = hosts_.at(guest.host_id);
  if (!host.up()) return;
  const auto asked = ask("detach " + name + " " + device, guest.host_id, 60 * kSecond);
  kernel_.after(0, host.daemon_process, [&host, name, device, asked] {
    host.daemon->agent().detach(name, device, "root",
                                [asked](const Result<std::uint64_t>&) { asked->answered = true; });
  });
}

// As an operator whose command reached the coordinator.
void World::decide(const command::Command& command) {
  for (auto& [id, host] : hosts_) {
    if (!host.up() || host.daemon->coordinator() == nullptr || !host.daemon->coordinator()->active()) continue;
    kernel_.after(0, host.daemon_process, [this, &host, command] {
      host.daemon->coordinator()->submit(command, [this](const std::optional<command::Reply>& reply) {
        if (reply && reply->status().code() != command::CODE_OK) kernel_.trace("world", reply->status().message());
      });
    });
  }
}

void World::revoke(const std::string& device, std::uint32_t grace_ms) {
  kernel_.trace("world", "revoke " + device + " grace_ms=" + std::to_string(grace_ms));
  command::Command command;
  command.mutable_revoke()->set_device(device);
  command.mutable_revoke()->set_grace_ms(grace_ms);
  command.mutable_revoke()->set_reason("an operator");
  decide(command);
}

void World::extend(const std::string& device, std::uint64_t duration_s) {
  kernel_.trace("world", "extend " + device + " by " + std::to_string(duration_s) + " s");
  command::Command command;
  command.mutable_extend()->set_device(device);
  command.mutable_extend()->set_duration_s(duration_s);
  decide(command);
}

void World::declare_dead(const std::string& id) {
  if (hosts_.at(id).powered) return;  // the operator looks first
  kernel_.trace("world", "declare-dead " + id);
  command::Command command;
  command.mutable_declare_dead()->set_host_id(id);
  command.mutable_declare_dead()->set_boot_id(hosts_.at(id).machine->boot_id);
  command.mutable_declare_dead()->set_principal("root");
  decide(command);
}

void World::new_epoch() {
  kernel_.trace("world", "repair --new-epoch");
  command::Command command;
  command.mutable_new_epoch()->set_epoch(wall_clock_unix_s());
  command.mutable_new_epoch()->set_principal("root");
  decide(command);
}

void World::transfer(const std::string& to) {
  kernel_.trace("world", "transfer to " + to);
  for (auto& [id, host] : hosts_) {
    if (!host.up() || host.daemon->coordinator() == nullptr || !host.daemon->coordinator()->active()) continue;
    kernel_.after(0, host.daemon_process, [this, &host, to] {
      host.daemon->node().transfer(to, [this](const Result<void>& done) {
        if (!done) kernel_.trace("world", done.error().message);
      });
    });
  }
}

}  // namespace usblease::sim
