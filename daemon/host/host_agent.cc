#include "daemon/host/host_agent.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/status_code.h"
#include "daemon/host/explain.h"
#include "daemon/lease/keys.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kFreeWaitNs = 15'000 * lease::kNsPerMs;
// A client that lost its connection to an earlier daemon comes back within this time, or its request is taken away.
constexpr std::uint64_t kOrphanNs = 10'000 * lease::kNsPerMs;

constexpr std::uint64_t kLibvirtWaitNs = 5'000 * lease::kNsPerMs;
constexpr std::uint64_t kLibvirtRetryNs = 100 * lease::kNsPerMs;
// How long a device that was unplugged under its guest is kept for it.
constexpr std::uint32_t kReplugWaitMs = 60'000;
constexpr std::int32_t kReplugPriority = 100;
constexpr std::uint64_t kGiveBackRetryNs = 1'000 * lease::kNsPerMs;

lease::Timing timing_of(const Config& config) {
  return lease::Timing{config.ttl_ms, config.renewal_ms, config.grace_ms, config.drift_ppm};
}

}  // namespace

HostAgent::HostAgent(const Config& config, const record::Host& self, cluster::CoordinatorLink& link,
                     Hypervisor& hypervisor, HomeFile& home_file, const RelayOptions& relays, UsbGate* gate,
                     std::string module_state)
    : config_(config),
      link_(link),
      hypervisor_(hypervisor),
      session_(link, home_file, self, timing_of(config), session_events()),
      relays_(relays, relay_events()),
      pages_(config.run_dir,
             [this] {
               if (page_trouble_changed_) page_trouble_changed_();
             }),
      starts_(
          {self.id(), self.boot_id(), config.libvirt_run_dir},
          [this](const record::Start& start) {
            std::erase_if(given_up_, [&](const auto& each) { return each.first == start.nonce(); });
            acquisitions_.start_ended(start);
            release(start, {}, "the guest has ended", "");
          },
          [this](const GuestStart& start) { attachments_.on_running(start); },
          [this](const GuestStart& start) { hand_to_process(start); }),
      sockets_(config.run_dir, config.libvirt_run_dir, [this](GuestStream stream) { on_stream(std::move(stream)); }),
      attachments_(
          hypervisor, sockets_, starts_, self.id(),
          [this](const record::Lease& lease, const std::string& device, const std::string& why) {
            release(lease.start(), {device}, why, "");
          },
          [this](const std::string& device, const record::Lease& lease, const GuestStart& start,
                 std::function<void(Result<UsbAddress>)> opened) {
            return open_usb(device, lease, start, std::move(opened));
          }),
      acquisitions_(link, [this](const command::Command& command) { give_back(command); }),
      locks_({link, home_file, session_, acquisitions_, [this](const command::Command& command) { give_back(command); },
              config.ttl_ms}),
      hook_calls_(
          starts_, acquisitions_,
          [this](const std::string& device) -> const record::Device* {
            const auto found = devices_.find(device);
            return found == devices_.end() ? nullptr : &found->second;
          },
          [this](const record::Start& start, const std::string& why) { release(start, {}, why, "hook"); },
          [this](const record::Start& start, const std::function<void(Result<void>)>& ready) {
            before_start(start, ready);
          }),
      home_context_{
          link,
          home_file,
          relays_,
          pages_,
          session_,
          config.ttl_ms,
          [this](const std::string& device, std::uint64_t token, const std::string& why) {
            attachments_.on_stream_ended(device, token, why);
          },
          [this](const std::string& device, std::uint64_t token) { attachments_.on_streaming(device, token); },
          [this](const std::string& device) { on_reported(device); },
          std::move(module_state)},
      gate_(gate),
      usb_hooks_{[this](const std::string& device) { return usb_in_use(device); },
                 [this](const record::Lease& lease, const UsbPlace& place) { give_up_usb(lease, place); },
                 [this](const record::Lease& lease) { destroy_holder(lease); },
                 [this](const std::string& device, const record::Lease& lease) { unplugged_[device] = lease; }} {
  pages_.adopt();  // before any record comes
  for (const DeviceConfig& device : config.devices) {
    if (!device.usb) {
      endpoints_[device.name] = std::make_unique<EndpointHome>(device, home_context_, HomeRole::kManaged);
    } else if (gate_ != nullptr) {
      usb_homes_[device.name] =
          std::make_unique<UsbHome>(device, home_context_, *gate_, usb_hooks_, HomeRole::kManaged);
    }
  }
  if (!usb_homes_.empty()) refusals_.emplace(*gate_, link_, self.id(), [this] { return calm_devices(); });
}

void HostAgent::start() {
  relays_.adopt([this, alive = std::weak_ptr(alive_)] {
    if (alive.expired()) return;
    adopted_ = true;
    home_context_.adopted = true;
    // What was pushed meanwhile is looked at now.
    for (const auto& [name, device] : devices_) {
      if (DeviceHome* home = home_of(name)) home->on_record(device);
    }
    log::info("relays of an earlier daemon are known", {{"RELAYS", std::to_string(relays_.count())}});
    if (coordinator_active_) session_.restart();
    session_.start();
    hypervisor_.start(hypervisor_events());
  });
}

void HostAgent::coordinator_active() {
  coordinator_active_ = true;
  if (adopted_) session_.restart();
}

DeviceHome* HostAgent::home_of(const std::string& device) {
  if (const auto endpoint = endpoints_.find(device); endpoint != endpoints_.end()) return endpoint->second.get();
  const auto usb = usb_homes_.find(device);
  return usb == usb_homes_.end() ? nullptr : usb->second.get();
}

DeviceHome& HostAgent::home_or_retired(const std::string& device) {
  if (DeviceHome* home = home_of(device)) return *home;
  const auto known = devices_.find(device);
  const bool on_usb =
      known != devices_.end() && std::any_of(known->second.homes().begin(), known->second.homes().end(), [&](auto& h) {
        return h.instance().host_id() == self().id() && h.identity().kind() == record::DEVICE_KIND_USB;
      });
  if (!on_usb || gate_ == nullptr) return endpoint_or_retired(device);
  log::warning("the configuration does not name this device any more; what was armed on it is fenced",
               {{"DEVICE", device}});
  DeviceConfig config;
  config.name = device;
  return *(usb_homes_[device] =
               std::make_unique<UsbHome>(config, home_context_, *gate_, usb_hooks_, HomeRole::kRetired));
}

EndpointHome& HostAgent::endpoint_or_retired(const std::string& device) {
  if (const auto known = endpoints_.find(device); known != endpoints_.end()) return *known->second;
  log::warning("the configuration does not name this device any more; what was armed on it is fenced",
               {{"DEVICE", device}});
  DeviceConfig config;
  config.name = device;
  return *(endpoints_[device] = std::make_unique<EndpointHome>(config, home_context_, HomeRole::kRetired));
}

bool HostAgent::names(const std::string& device) const {
  return std::any_of(config_.devices.begin(), config_.devices.end(),
                     [&](const DeviceConfig& configured) { return configured.name == device; });
}

std::uint32_t HostAgent::isolation_ms(const std::string& device) const {
  if (const auto endpoint = endpoints_.find(device); endpoint != endpoints_.end())
    return endpoint->second->isolation_ms();
  const auto usb = usb_homes_.find(device);
  return usb == usb_homes_.end() ? config_.ttl_ms : usb->second->isolation_ms();
}

RelayEvents HostAgent::relay_events() {
  RelayEvents events;
  const auto to = [this](const std::string& device, const std::function<void(EndpointHome&)>& deliver) {
    deliver(endpoint_or_retired(device));
  };
  events.hello = [to](const relay::Hello& hello) {
    to(hello.device(), [&](EndpointHome& home) { home.on_relay_hello(hello); });
  };
  events.connected = [to](const std::string& device, std::uint64_t token) {
    to(device, [&](EndpointHome& home) { home.on_relay_connected(token); });
  };
  events.device_seen = [to](const std::string& device, std::uint64_t token, const relay::DeviceSeen& seen) {
    to(device, [&](EndpointHome& home) { home.on_relay_device(token, seen); });
  };
  events.ended = [to](const std::string& device, std::uint64_t token, const relay::Ended& ended) {
    to(device, [&](EndpointHome& home) { home.on_relay_ended(token, ended); });
  };
  events.fenced = [to](const std::string& device, std::uint64_t token) {
    to(device, [&](EndpointHome& home) { home.on_relay_fenced(token); });
  };
  events.lost = [to](const std::string& device, std::uint64_t token) {
    to(device, [&](EndpointHome& home) { home.on_relay_lost(token); });
  };
  return events;
}

SessionEvents HostAgent::session_events() {
  SessionEvents events;
  events.registered = [this] { on_registered(); };
  events.deadline = [this](const lease::DeviceToken& lease, std::uint64_t deadline_ns) {
    if (lease::is_lock(lease.first)) return locks_.set_deadline(lease, deadline_ns);
    if (DeviceHome* home = home_of(lease.first)) home->set_deadline(lease.second, deadline_ns);
  };
  events.fence = [this](const lease::DeviceToken& lease) {
    if (lease::is_lock(lease.first)) return locks_.fence(lease);
    if (DeviceHome* home = home_of(lease.first)) home->fence(lease.second);
  };
  return events;
}

HypervisorEvents HostAgent::hypervisor_events() {
  HypervisorEvents events;
  events.connected = [this](const std::vector<Guest>& guests) {
    log::info("connected to libvirt", {{"GUESTS", std::to_string(guests.size())}});
    guests_ = guests;
    reconcile_guests();
  };
  events.disconnected = [](const std::string& why) { log::warning("libvirt is away", {{"ERROR", why}}); };
  events.guest_started = [this](const Guest& guest) { starts_.reconcile({guest}); };
  events.guest_stopped = [this](const std::string& uuid) { starts_.check(uuid); };
  events.device_removed = [this](const std::string& uuid, const std::string& device) {
    attachments_.on_removed(uuid, device);
  };
  return events;
}

void HostAgent::on_registered() {
  unreported_.clear();
  acquisitions_.repeat();
  for (const DeviceConfig& device : config_.devices) {
    if (!devices_.contains(device.name)) unreported_.insert(device.name);
  }
  for (const auto& [name, home] : endpoints_) home->report();
  for (const auto& [name, home] : usb_homes_) home->report();
  for (const auto& [name, device] : devices_) forget_if_over(device);
  tell_ready();
}

void HostAgent::on_usb(const std::string& device, const UsbSighting& sighting) {
  if (const auto home = usb_homes_.find(device); home != usb_homes_.end()) home->second->on_sighting(sighting);
}

// What the configuration does not name any more. While it is leased, the coordinator has it fenced first; then its
// record comes again, without the lease.
void HostAgent::forget_if_over(const record::Device& device) {
  if (!session_.registered() || names(device.name())) return;
  const bool homed = std::any_of(device.homes().begin(), device.homes().end(),
                                 [&](const auto& home) { return home.instance().host_id() == self().id(); });
  const bool fencing = device.has_lease() && device.lease().phase() == record::PHASE_FENCING;
  if (!homed || fencing) return;
  command::Command command;
  command.mutable_forget_device()->set_device(device.name());
  command.mutable_forget_device()->set_host_id(self().id());
  link_.submit(std::move(command), [](const command::Reply& /*repeated at the next registration*/) {});
}

void HostAgent::when_ready(std::function<void()> ready) {
  ready_ = std::move(ready);
  tell_ready();
}

void HostAgent::on_reported(const std::string& device) {
  unreported_.erase(device);
  tell_ready();
}

void HostAgent::tell_ready() {
  if (ready_ && session_.registered() && unreported_.empty()) std::exchange(ready_, nullptr)();
}

// --- What the coordinator says ---------------------------------------------------------------------------

void HostAgent::on_view(const peer::HostView& view) {
  for (const record::Device& device : view.devices()) on_device(device);
  for (const record::Request& request : view.requests()) sync_reservation(request);
  for (const std::string& id : view.ended_requests()) end_reservation(id);
  if (!view.whole()) return;
  const auto is_over = [&](const std::string& id) {
    return std::none_of(view.requests().begin(), view.requests().end(), [&](const auto& r) { return r.id() == id; });
  };
  for (const auto& [id, request] : std::map<std::string, record::Request>(reserved_)) {
    if (is_over(id)) end_reservation(id);
  }
  forget_unnamed(view);
  close_pages_without_lease();
  adopt_requests(view);
  starts_.all_adopted();
  views_known_ = true;
  reconcile_guests();
}

// What ended while nobody could say so: a whole view names everything that concerns this host.
void HostAgent::forget_unnamed(const peer::HostView& view) {
  std::set<std::string> named;
  for (const record::Device& device : view.devices()) named.insert(device.name());
  std::vector<record::Device> ended;
  for (const auto& [name, device] : devices_) {
    if (!named.contains(name)) ended.push_back(device);
  }
  for (record::Device& device : ended) {
    device.clear_lease();
    device.clear_homes();
    on_device(device);
    devices_.erase(device.name());
  }
}

// A lease that ended while no daemon was here.
void HostAgent::close_pages_without_lease() {
  pages_.keep([this](const std::string& name, std::uint64_t token) {
    const auto found = devices_.find(name);
    return found != devices_.end() && found->second.has_lease() && found->second.lease().token() == token;
  });
}

// Needs both: without the leases, every device that libvirt shows attached would look like nobody's.
void HostAgent::reconcile_guests() {
  if (!views_known_ || !guests_) return;
  const std::vector<Guest> guests = *std::exchange(guests_, std::nullopt);
  // What is attached first: a start that is found running would else be given its devices again.
  attachments_.reconcile(guests);
  starts_.reconcile(guests);
}

void HostAgent::on_device(const record::Device& device) {
  devices_[device.name()] = device;
  if (lease::is_lock(device.name())) {
    locks_.on_record(device);
    return tell_free_waiters(device);
  }
  if (device.has_lease()) starts_.adopt(device.lease().start(), device.lease().guest_name(), false);
  sync_sockets(device);
  const bool leased_from_here = device.has_lease() && device.lease().instance().host_id() == self().id();
  DeviceHome* home =
      leased_from_here && !names(device.name()) ? &home_or_retired(device.name()) : home_of(device.name());
  if (home != nullptr) home->on_record(device);
  keep_for_start(device);
  ask_again(device);
  attachments_.on_record(device);
  forget_if_over(device);
  tell_free_waiters(device);
}

void HostAgent::tell_free_waiters(const record::Device& device) {
  std::vector<std::uint64_t> freed;
  for (const auto& [id, waiter] : free_waiters_) {
    if (waiter.device == device.name() && (!device.has_lease() || device.lease().token() != waiter.token))
      freed.push_back(id);
  }
  for (const std::uint64_t id : freed) free_waiters_.extract(id).mapped().done(true);
}

// A guest socket stands for as long as a lease or a reservation does. A bare lease has none.
void HostAgent::sync_sockets(const record::Device& device) {
  const record::Lease* lease = device.has_lease() ? &device.lease() : nullptr;
  const bool wanted = lease != nullptr && lease->phase() != record::PHASE_FENCING &&
                      lease->start().host_id() == self().id() && !is_bare(lease->start()) &&
                      !usb_homes_.contains(device.name());
  const auto open = sockets_of_.find(device.name());
  if (open != sockets_of_.end() && (!wanted || open->second.first != lease->start().guest_uuid())) {
    sockets_.close(open->second.first, open->second.second);
    sockets_of_.erase(open);
  }
  if (!wanted) return;
  if (const auto opened = sockets_.open(lease->start().guest_uuid(), lease->guest_name(), device.name()); !opened) {
    log::error("cannot open the guest socket",
               {{"DEVICE", device.name()}, {"GUEST", lease->guest_name()}, {"ERROR", opened.error().message}});
    return;
  }
  sockets_of_[device.name()] = {lease->start().guest_uuid(), device.name()};
}

// The destination of a migration connects before it has the lease: its socket must be there.
void HostAgent::sync_reservation(const record::Request& request) {
  if (!request.reservation()) return;
  reserved_[request.id()] = request;
  for (const std::string& device : request.devices()) {
    if (const auto opened = sockets_.open(request.start().guest_uuid(), request.guest_name(), device); !opened) {
      log::error("cannot open the guest socket",
                 {{"DEVICE", device}, {"GUEST", request.guest_name()}, {"ERROR", opened.error().message}});
    }
  }
}

// Granted, refused or cancelled. What was granted has its lease's socket by now: the same one.
void HostAgent::end_reservation(const std::string& request_id) {
  const auto ended = reserved_.extract(request_id);
  if (ended.empty()) return;
  const std::string& guest_uuid = ended.mapped().start().guest_uuid();
  for (const std::string& device : ended.mapped().devices()) {
    const auto leased = sockets_of_.find(device);
    if (leased == sockets_of_.end() || leased->second.first != guest_uuid) sockets_.close(guest_uuid, device);
  }
}

void HostAgent::adopt_requests(const peer::HostView& view) {
  std::vector<std::string> orphans;
  for (const record::Request& request : view.requests()) {
    starts_.adopt(request.start(), request.guest_name(), request.reservation());
    if (acquisitions_.waits(request.id())) continue;
    // A hook waited for this at an earlier daemon. It lost its connection, so libvirt has given that start up; it
    // cannot be granted any more. A reservation was answered before it was granted: it waits without a hook.
    if (request.id() == "hook-" + request.start().nonce() && !request.reservation()) {
      starts_.refused(request.start());
      continue;
    }
    orphans.push_back(request.id());
  }
  orphan_check_ = run_after(kOrphanNs, [this, orphans] {
    for (const std::string& id : orphans) {
      if (acquisitions_.waits(id)) continue;
      // An optional device of a guest that still runs: nobody waits, but it is wanted.
      const auto of_live_start = [&](const std::string& nonce) { return id.rfind("hook-" + nonce, 0) == 0; };
      if (starts_.any_nonce(of_live_start)) continue;
      command::Command cancel;
      cancel.mutable_cancel_request()->set_request_id(id);
      cancel.mutable_cancel_request()->set_reason("nobody waits for it any more");
      link_.submit(std::move(cancel), [](const command::Reply& /*gone either way*/) {});
    }
  });
}

void HostAgent::on_stream(GuestStream stream) {
  const auto home = endpoints_.find(stream.device);
  if (home == endpoints_.end()) return;  // closes it
  auto process = GuestProcess::open(stream.process.pid());
  if (process) starts_.seen(stream.guest_uuid, std::move(*process));
  home->second->on_stream(std::move(stream));
}

// --- Devices on this host's own bus --------------------------------------------------------------------------

bool HostAgent::open_usb(const std::string& device, const record::Lease& lease, const GuestStart& start,
                         std::function<void(Result<UsbAddress>)> opened) {
  const auto home = usb_homes_.find(device);
  if (home == usb_homes_.end()) return false;
  const UsbHolder holder{start.process->pid(), start.process->start_ticks()};
  home->second->open_for(lease.token(), holder, [opened = std::move(opened)](const Result<UsbPlace>& place) {
    if (!place) return opened(tl::unexpected(place.error()));
    opened(UsbAddress{place->bus, place->device});
  });
  return true;
}

// A <hostdev> in the guest's own XML is opened by QEMU as soon as it runs, before libvirt says so. So the device is
// bound as soon as it is granted, for this process alone, and its QEMU takes its place the moment that it exists.
void HostAgent::keep_for_start(const record::Device& device) {
  const record::Lease* lease = device.has_lease() ? &device.lease() : nullptr;
  const bool wanted = lease != nullptr && usb_homes_.contains(device.name()) && is_opened_by_xml(*lease);
  if (!wanted) {
    kept_.erase(device.name());
    return;
  }
  if (std::exchange(kept_[device.name()], lease->token()) == lease->token()) return;
  const GuestStart* start = starts_.find(lease->start());
  if (start != nullptr && start->process) return hand_to_process(*start);
  usb_homes_.at(device.name())->open_for(lease->token(), this_process(), [](const Result<UsbPlace>& /*logged*/) {});
}

bool HostAgent::is_opened_by_xml(const record::Lease& lease) const {
  return !lease.attach() && lease.phase() != record::PHASE_FENCING && lease.start().host_id() == self().id() &&
         !is_bare(lease.start());
}

// libvirt is about to start its QEMU: all that its XML names must be open by then.
void HostAgent::before_start(const record::Start& start, const std::function<void(Result<void>)>& ready) {
  auto left = std::make_shared<std::size_t>(1);
  const auto opened = [left, ready](const Result<UsbPlace>& place) {
    if (*left == 0) return;
    if (!place) *left = 1;  // the first that fails is the answer
    if (--*left == 0) ready(place ? Result<void>() : Result<void>(tl::unexpected(place.error())));
  };
  for (const auto& [name, home] : usb_homes_) {
    const auto device = devices_.find(name);
    if (device == devices_.end() || !device->second.has_lease()) continue;
    const record::Lease& lease = device->second.lease();
    if (lease.start().nonce() != start.nonce() || !is_opened_by_xml(lease)) continue;
    ++*left;
    home->open_for(lease.token(), this_process(), opened);
  }
  if (*left > 1) starts_.expect_process(start);
  opened(UsbPlace());
}

void HostAgent::hand_to_process(const GuestStart& start) {
  const UsbHolder holder{start.process->pid(), start.process->start_ticks()};
  for (const auto& [name, home] : usb_homes_) {
    const auto device = devices_.find(name);
    if (device == devices_.end() || !device->second.has_lease()) continue;
    const record::Lease& lease = device->second.lease();
    if (lease.start().nonce() != start.start.nonce() || !is_opened_by_xml(lease)) continue;
    home->open_for(lease.token(), holder, [name = name](const Result<UsbPlace>& opened) {
      if (!opened)
        log::warning("the guest's QEMU may not open its device", {{"DEVICE", name}, {"ERROR", opened.error().message}});
    });
  }
}

bool HostAgent::usb_in_use(const std::string& device) const {
  const auto found = devices_.find(device);
  if (found == devices_.end() || !found->second.has_lease()) return false;
  const record::Lease& lease = found->second.lease();
  const GuestStart* start = starts_.find(lease.start());
  if (start == nullptr || (start->process && !start->process->alive())) return false;  // it has ended
  if (lease.attach()) return attachments_.may_have(device);
  return start->process && !given_up_.contains({lease.start().nonce(), lease.token()});
}

std::map<std::string, UsbRefusals::Calm> HostAgent::calm_devices() const {
  std::map<std::string, UsbRefusals::Calm> out;
  for (const auto& [name, home] : usb_homes_) {
    if (const auto place = home->calm_place()) out[name] = {*place, home->dead_through()};
  }
  return out;
}

// What was attached, Attachments takes out again. What the guest's own XML names, nobody else does.
void HostAgent::give_up_usb(const record::Lease& lease, const UsbPlace& place) {
  if (lease.attach()) return;
  const std::pair<std::string, std::uint64_t> name{lease.start().nonce(), lease.token()};
  hypervisor_.detach_usb(
      lease.start().guest_uuid(), {place.bus, place.device},
      [this, alive = std::weak_ptr(alive_), name, guest = lease.guest_name()](const Result<void>& detached) {
        if (alive.expired()) return;
        if (detached) {
          given_up_.insert(name);
          return;
        }
        log::warning("libvirt still shows the device in its guest",
                     {{"GUEST", guest}, {"ERROR", detached.error().message}});
      });
}

void HostAgent::destroy_holder(const record::Lease& lease) {
  hypervisor_.destroy(lease.start().guest_uuid(), [name = lease.guest_name()](const Result<void>& destroyed) {
    if (!destroyed) log::error("cannot destroy a guest", {{"GUEST", name}, {"ERROR", destroyed.error().message}});
  });
}

// Its guest gets it back when it is plugged in again, before all others, as a new lease: asked for when the old one is
// over, or it would be the answer.
void HostAgent::ask_again(const record::Device& device) {
  const auto unplugged = unplugged_.find(device.name());
  if (unplugged == unplugged_.end() || (device.has_lease() && device.lease().token() == unplugged->second.token()))
    return;
  const record::Lease lease = unplugged->second;
  unplugged_.erase(unplugged);
  const std::uint64_t now_s = wall_clock_unix_s();
  if (lease.start().host_id() != self().id() || is_bare(lease.start())) return;
  if (lease.until_unix_s() != 0 && lease.until_unix_s() <= now_s) return;
  command::Acquire again;
  again.set_request_id("replug-" + std::to_string(lease.token()) + "-" + device.name().substr(0, 32));
  *again.mutable_start() = lease.start();
  again.set_guest_name(lease.guest_name());
  again.add_devices(device.name());
  again.add_attach_devices(device.name());
  again.set_priority(kReplugPriority);
  again.set_duration_s(lease.until_unix_s() == 0 ? 0 : lease.until_unix_s() - now_s);
  again.set_wait_ms(kReplugWaitMs);
  again.set_principal(lease.principal());
  acquisitions_.acquire(again, nullptr, [device = device.name()](const command::Reply& reply) {
    if (reply.status().code() == command::CODE_OK) return;
    log::info("its guest does not wait for the device any more",
              {{"DEVICE", device}, {"ERROR", reply.status().message()}});
  });
}

// --- What people want ----------------------------------------------------------------------------------------

void HostAgent::release(const record::Start& start, const std::vector<std::string>& devices, const std::string& why,
                        const std::string& principal) {
  command::Command command;
  command::Release& c = *command.mutable_release();
  *c.mutable_start() = start;
  for (const std::string& device : devices) c.add_devices(device);
  c.set_reason(why.substr(0, 512));
  c.set_principal(principal);
  give_back(command);
}

// A full disk, or no coordinator: it must go back some time.
void HostAgent::give_back(const command::Command& command) {
  link_.submit(command, [this, alive = std::weak_ptr(alive_), command](const command::Reply& reply) {
    if (alive.expired() || reply.status().code() != command::CODE_UNAVAILABLE) return;
    unreturned_.push_back(command);
    give_back_retry_ = run_after(kGiveBackRetryNs, [this] {
      for (const command::Command& again : std::exchange(unreturned_, {})) give_back(again);
    });
  });
}

void HostAgent::find_guest(const std::string& guest, std::uint64_t give_up_ns, Done<Guest> done) {
  hypervisor_.find_guest(guest, [this, alive = std::weak_ptr(alive_), guest, give_up_ns,
                                 done = std::move(done)](const Result<Guest>& found) {
    if (alive.expired()) return;
    // Also when it is connected by now: the answer is older.
    const bool coming_up = !found && found.error().code == ErrorCode::kUnavailable;
    if (!coming_up || boottime_now_ns() >= give_up_ns) return done(found);
    const std::uint64_t id = next_finding_++;
    finding_[id] = run_after(kLibvirtRetryNs, [this, id, guest, give_up_ns, done] {
      const SourceHandle spent = std::move(finding_.at(id));
      finding_.erase(id);
      find_guest(guest, give_up_ns, done);
    });
  });
}

void HostAgent::attach(const api::Attach& request, const std::string& principal,
                       std::function<void(const command::Reply&)> waiting, Done<command::Reply> done) {
  attaching_[request.request_id()] = std::nullopt;
  Done<command::Reply> answer = [this, id = request.request_id(),
                                 done = std::move(done)](Result<command::Reply> reply) {
    attaching_.erase(id);
    done(std::move(reply));
  };
  find_guest(request.guest(), boottime_now_ns() + kLibvirtWaitNs,
             [this, alive = std::weak_ptr(alive_), request, principal, waiting = std::move(waiting),
              answer = std::move(answer)](const Result<Guest>& guest) {
               // libvirt may take its time: nobody waits any more for what is not asked for yet.
               if (alive.expired() || !attaching_.contains(request.request_id())) return;
               if (!guest) return answer(tl::unexpected(guest.error()));
               if (!guest->running) {
                 return answer(fail(ErrorCode::kRefused,
                                    "guest " + guest->name +
                                        " is not running; `usblease assign` gives it the device at its next start"));
               }
               const auto start = starts_.running_guest(*guest);
               if (!start) return answer(tl::unexpected(start.error()));
               command::Acquire acquire;
               acquire.set_request_id(request.request_id());
               *acquire.mutable_start() = (*start)->start;
               acquire.set_guest_name(guest->name);
               *acquire.mutable_devices() = request.devices();
               *acquire.mutable_attach_devices() = request.devices();
               acquire.set_priority(request.priority());
               acquire.set_duration_s(request.duration_s());
               acquire.set_wait_ms(request.wait_ms());
               acquire.set_principal(principal);
               acquisitions_.acquire(acquire, waiting, [this, acquire, answer](const command::Reply& reply) {
                 attach_granted(acquire, reply, answer);
               });
             });
}

void HostAgent::attach_granted(const command::Acquire& request, const command::Reply& reply,
                               const Done<command::Reply>& answer) {
  if (reply.status().code() != command::CODE_OK)
    return answer(
        fail(error_code_of(reply.status().code()), explain(reply, request.guest_name(), Asked::kWhileRunning)));
  attaching_[request.request_id()] = request;
  // All of them must flow; the first that fails is the answer.
  auto left = std::make_shared<int>(reply.grants_size());
  for (const command::Grant& grant : reply.grants()) {
    attachments_.wait(grant.device(), grant.token(), [left, reply, answer](const Result<void>& flowing) {
      if (*left <= 0) return;
      if (!flowing) {
        *left = 0;
        return answer(tl::unexpected(flowing.error()));
      }
      if (--*left == 0) answer(reply);
    });
  }
}

void HostAgent::abandon_attach(const std::string& request_id) {
  const std::string why = "the client went away";
  acquisitions_.abandon(request_id, why);
  const auto attaching = attaching_.extract(request_id);
  if (!attaching.empty() && attaching.mapped()) acquisitions_.take_back(*attaching.mapped(), why);
}

void HostAgent::detach(const std::string& guest, const std::string& device, const std::string& principal,
                       const Done<std::uint64_t>& done) {
  const auto found = devices_.find(device);
  const record::Lease* lease = found != devices_.end() && found->second.has_lease() ? &found->second.lease() : nullptr;
  if (lease == nullptr || (lease->guest_name() != guest && lease->start().guest_uuid() != guest)) {
    return done(fail(ErrorCode::kNotFound, "guest " + guest + " does not hold device " + device + " on this host"));
  }
  const std::uint64_t token = lease->token();
  release(lease->start(), {device}, "detached", principal);
  when_free(device, token, [done, device, token](bool free) {
    if (free) return done(token);
    done(fail(ErrorCode::kTimedOut,
              device + " was told to stop, but its end is not confirmed yet; see `usblease info " + device + "`"));
  });
}

std::vector<lease::DeviceToken> HostAgent::held_by(const record::Start& start,
                                                   const std::set<std::string>& devices) const {
  std::vector<lease::DeviceToken> held;
  for (const auto& [name, device] : devices_) {
    if (!devices.empty() && !devices.contains(name)) continue;
    if (device.has_lease() && device.lease().start().nonce() == start.nonce())
      held.emplace_back(name, device.lease().token());
  }
  return held;
}

void HostAgent::when_free(const std::string& device, std::uint64_t token, std::function<void(bool)> done) {
  const auto found = devices_.find(device);
  const bool held = found != devices_.end() && found->second.has_lease() && found->second.lease().token() == token;
  if (!held) return done(true);
  const std::uint64_t id = next_waiter_++;
  FreeWaiter& waiter = free_waiters_[id];
  waiter.device = device;
  waiter.token = token;
  waiter.done = std::move(done);
  waiter.timeout = run_after(kFreeWaitNs, [this, id] {
    auto late = free_waiters_.extract(id);
    if (!late.empty()) late.mapped().done(false);
  });
}

}  // namespace usblease::host
