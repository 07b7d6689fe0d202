#include "tests/sim/daemon.h"

#include <utility>

#include "tests/sim/checks.h"

namespace usblease::sim {
namespace {

constexpr Ns kLibvirtMax = 60 * kMs;

}  // namespace

// --- libvirt ---------------------------------------------------------------------------------------

void SimHypervisor::later(std::function<void()> call) {
  Kernel& kernel = world_.kernel();
  kernel.after(kernel.chance().between(kMs, kLibvirtMax), kernel.current(),
               [call = std::move(call), alive = std::weak_ptr(alive_)] {
                 if (!alive.expired()) call();
               });
}

host::Guest SimHypervisor::describe(const Guest& guest) const {
  host::Guest out;
  out.uuid = guest.uuid;
  out.name = guest.name;
  out.running = guest.qemu != nullptr;
  out.domain_id = out.running ? guest.domain_id : -1;
  out.pid = out.running ? guest.pid : 0;
  out.attached.assign(guest.attached.begin(), guest.attached.end());
  return out;
}

std::vector<host::Guest> SimHypervisor::all() const {
  std::vector<host::Guest> out;
  for (const auto& [name, guest] : world_.guests()) {
    if (guest.host_id == host_.machine->id) out.push_back(describe(guest));
  }
  return out;
}

void SimHypervisor::start(host::HypervisorEvents events) {
  events_ = std::move(events);
  later([this] { events_.connected(all()); });
}

void SimHypervisor::find_guest(std::string name_or_uuid, Done<host::Guest> done) {
  later([this, name_or_uuid = std::move(name_or_uuid), done = std::move(done)] {
    for (const host::Guest& guest : all()) {
      if (guest.name == name_or_uuid || guest.uuid == name_or_uuid) return done(guest);
    }
    done(fail(ErrorCode::kNotFound, "there is no guest " + name_or_uuid));
  });
}

void SimHypervisor::list_guests(Done<std::vector<host::Guest>> done) {
  later([this, done = std::move(done)] { done(all()); });
}

void SimHypervisor::attach_endpoint(std::string guest_uuid, std::string device, std::string /*socket_path*/,
                                    Done<void> done) {
  later([this, guest_uuid = std::move(guest_uuid), device = std::move(device), done = std::move(done)] {
    Guest* guest = world_.guest_by_uuid(guest_uuid);
    if (guest == nullptr || guest->qemu == nullptr) return done(fail(ErrorCode::kRefused, "the guest does not run"));
    if (!world_.connect_guest(guest_uuid, device))
      return done(fail(ErrorCode::kInternal, "QEMU cannot connect to the socket"));
    guest->attached.insert(device);
    done({});
  });
}

// Simulated hosts have no bus of their own.
void SimHypervisor::attach_usb(std::string /*guest_uuid*/, std::string /*device*/, host::UsbAddress /*address*/,
                               Done<void> done) {
  later([done = std::move(done)] { done(fail(ErrorCode::kInternal, "there is no bus here")); });
}

void SimHypervisor::detach_usb(std::string /*guest_uuid*/, host::UsbAddress /*address*/, Done<void> done) {
  later([done = std::move(done)] { done(fail(ErrorCode::kInternal, "there is no bus here")); });
}

void SimHypervisor::destroy(std::string /*guest_uuid*/, Done<void> done) {
  later([done = std::move(done)] { done(fail(ErrorCode::kInternal, "nobody needs it here")); });
}

void SimHypervisor::detach(std::string guest_uuid, std::string device, Done<void> done) {
  later([this, guest_uuid = std::move(guest_uuid), device = std::move(device), done = std::move(done)] {
    Guest* guest = world_.guest_by_uuid(guest_uuid);
    if (guest != nullptr && guest->attached.erase(device) != 0) {
      auto connection = guest->connections.extract(device);
      if (!connection.empty()) connection.mapped()->guest_gone();
      if (events_.device_removed) events_.device_removed(guest_uuid, device);
    }
    done({});
  });
}

void SimHypervisor::assign(std::string /*guest*/, Assignment /*assignment*/, bool /*remove*/, Done<bool> done) {
  later([done = std::move(done)] { done(false); });
}

void SimHypervisor::guest_started(const Guest& guest) {
  if (events_.guest_started) events_.guest_started(describe(guest));
}

void SimHypervisor::guest_stopped(const Guest& guest) {
  if (events_.guest_stopped) events_.guest_stopped(guest.uuid);
}

// --- usbleased -------------------------------------------------------------------------------------

Daemon::Daemon(World& world, HostState& host, Process& process) : world_(world), host_(host), process_(process) {}

Daemon::~Daemon() = default;

cluster::NodeEvents Daemon::node_events() {
  cluster::NodeEvents events;
  events.router.ready = [this] { agent_->coordinator_active(); };
  events.router.view = [this](const peer::HostView& view) { agent_->on_view(view); };
  events.router.settled = [this](const std::string& id, const command::Reply& reply) { agent_->on_settled(id, reply); };
  events.active = [this](bool active) { world_.checks().coordinator_active(process_, active, coordinator()->term()); };
  events.event = [this](const record::Event& event) {
    if (!world_.kernel().traces()) return;
    world_.kernel().trace(process_.name, "* " + event.kind() + " " + event.device() + " guest=" + event.guest() +
                                             " token=" + std::to_string(event.token()) + " " + event.text());
  };
  return events;
}

cluster::Members Daemon::members() const {
  cluster::Members members;
  members.cluster_id = kClusterId;
  for (const auto& [id, host] : world_.hosts()) members.hosts.push_back({id, {id + ":7471"}, host.candidate, ""});
  return members;
}

Result<void> Daemon::start() {
  auto home_file = host::HomeFile::open("home", host_.machine->id);
  if (!home_file) return tl::unexpected(home_file.error());
  home_file_ = std::move(*home_file);
  if (host_.candidate) store_ = std::make_unique<StoreClient>(world_.store(), process_, post);
  node_ = std::make_unique<cluster::Node>(
      store_.get(),
      cluster::CoordinatorOptions{host_.machine->id, host_.machine->boot_id, kClusterId, world_.options().timing},
      node_events());
  hypervisor_ = std::make_unique<SimHypervisor>(world_, host_);
  record::Host self;
  self.set_id(host_.machine->id);
  self.set_name(host_.machine->id);
  self.set_boot_id(host_.machine->boot_id);
  self.set_machine_uuid(host_.machine_uuid);
  self.add_rungs(record::RUNG_ADMISSION);
  self.add_rungs(record::RUNG_RELAY);
  agent_ = std::make_unique<host::HostAgent>(host_.config, self, node_->router(), *hypervisor_, *home_file_,
                                             host::RelayOptions{});
  cluster::TransportEvents events = node_->transport_events();
  events.join = [](const std::string& /*nobody joins*/, const std::function<void(std::string)>& answer) { answer(""); };
  transport_ = std::make_unique<SimTransport>(world_.network(), host_.machine->id, process_, std::move(events));
  node_->use(*transport_, {});
  node_->set_members(members());
  home_file_->set_cluster_id(kClusterId, [](const Result<void>& /*tried again at the next start*/) {});
  node_->start();
  agent_->start();
  return {};
}

void Daemon::die() {
  if (store_) store_->die();
  agent_.reset();
  transport_.reset();
  node_.reset();
  hypervisor_.reset();
  home_file_.reset();
  store_.reset();
}

}  // namespace usblease::sim
