#include "tests/sim/checks.h"

#include <algorithm>

#include "daemon/host/home_codec.h"
#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"
#include "daemon/lease/state.h"
#include "daemon/lease/step.h"
#include "tests/sim/daemon.h"
#include "tests/sim/world.h"

namespace usblease::sim {
namespace {

bool take(std::string& key, const char* prefix) {
  if (!key.starts_with(prefix)) return false;
  key.erase(0, std::string(prefix).size());
  return true;
}

template <typename Record>
Record parse(const std::optional<std::string>& value) {
  Record record;
  if (value) record.ParseFromString(*value);
  return record;
}

std::string lease_name(const std::string& device, std::uint64_t token) {
  return device + " under token " + std::to_string(token);
}

// As lease/queue.cc orders them.
bool goes_before(const record::Request& a, const record::Request& b) {
  if (a.reservation() != b.reservation()) return a.reservation();
  if (a.priority() != b.priority()) return a.priority() > b.priority();
  return a.seq() < b.seq();
}

}  // namespace

void Checks::fail(const std::string& what) { world_.kernel().fail(what); }

// --- At the devices --------------------------------------------------------------------------------

void Checks::step() {
  for (const auto& [name, device] : world_.devices()) {
    const std::uint64_t live = device->live_token();
    if (live == 0) continue;
    std::uint64_t& greatest = greatest_live_[name];
    if (live < greatest) fail("transfers on " + lease_name(name, live) + " after token " + std::to_string(greatest));
    greatest = std::max(greatest, live);
  }
  for (const auto& [id, host] : world_.hosts()) {
    for (const auto& [key, relay] : host.relays) {
      if (!relay->alive() || !relay->forwards()) continue;
      const auto& [name, token] = key;
      if (forgotten_.contains(key)) continue;
      const record::Device& device = devices_[name];
      if (!device.has_lease() || device.lease().token() != token)
        return fail("a guest completes transfers on " + lease_name(name, token) + ", but the record says " +
                    (device.has_lease() ? "token " + std::to_string(device.lease().token()) : "that it is free"));
      if (device.lease().start().guest_uuid() != relay->start().guest_uuid)
        return fail("another guest than the record says completes transfers on " + lease_name(name, token));
      const auto gone = gone_at_.find(id);
      const bool isolated = device.policy().isolation_ms() > world_.options().timing.ttl_ms;
      if (gone != gone_at_.end() && gone->second > relay->born_ns && !isolated)
        return fail("transfers on " + lease_name(name, token) + " although its home " + id + " counts as gone");
    }
  }
}

// --- At the store ----------------------------------------------------------------------------------

void Checks::committed(const Committed& what) {
  written_.clear();
  dropped_.clear();
  served_.clear();
  declared_dead_.clear();
  for (const store::WatchUpdate& change : *what.changes) {
    written_.insert(change.key);
    if (change.key.starts_with(lease::kEventPrefix)) event_written(change.value);
    if (change.key == lease::kMetaKey) meta_written(change.value);
    if (change.key == lease::kCoordinatorKey) {
      coordinator_written(what, change.value);
    } else if (change.key != lease::kTermKey && (what.by == nullptr || &what.by->process() != holder_)) {
      fail((what.by == nullptr ? "nobody" : what.by->process().name) + " wrote " + change.key +
           " without being the coordinator");
    }
  }
  for (const store::WatchUpdate& change : *what.changes) {
    std::string name = change.key;
    if (take(name, lease::kHostPrefix)) host_written(name, change.value);
  }
  for (const store::WatchUpdate& change : *what.changes) {
    std::string name = change.key;
    if (take(name, lease::kDevicePrefix)) device_written(name, change.value, what.revision);
  }
  for (const store::WatchUpdate& change : *what.changes) {
    std::string name = change.key;
    if (take(name, lease::kRequestPrefix)) request_written(name, change.value);
  }
}

void Checks::coordinator_written(const Committed& what, const std::optional<std::string>& value) {
  holder_ = nullptr;
  if (!value) return;
  const auto coordinator = parse<record::Coordinator>(value);
  if (coordinator.term() <= last_term_)
    fail("term " + std::to_string(coordinator.term()) + " after " + std::to_string(last_term_));
  last_term_ = std::max(last_term_, coordinator.term());
  last_election_ = world_.kernel().now();
  holder_ = &what.by->process();
  if (world_.kernel().traces())
    world_.kernel().trace("store",
                          "the coordinator of term " + std::to_string(coordinator.term()) + " is " + holder_->name);
}

void Checks::coordinator_active(const Process& process, bool active, std::uint64_t term) {
  // One that was elected before the store went back in time, and does not know it yet, is no coordinator of these
  // terms.
  if (!active || &process != holder_) return;
  const auto [known, added] = term_of_.emplace(term, &process);
  if (!added && known->second != &process) fail("two coordinators of term " + std::to_string(term));
}

void Checks::device_written(const std::string& name, const std::optional<std::string>& value, std::uint64_t revision) {
  const record::Device before = devices_[name];
  const auto now = parse<record::Device>(value);
  if (now.last_token() < before.last_token())
    fail("the counter of " + name + " went back at revision " + std::to_string(revision));
  const std::uint64_t old_token = before.has_lease() ? before.lease().token() : 0;
  const std::uint64_t new_token = now.has_lease() ? now.lease().token() : 0;
  if (old_token != new_token) {
    if (old_token != 0) lease_ended(name, before.lease());
    if (new_token != 0) {
      std::uint64_t& greatest = greatest_granted_[name];
      const bool again = granted_.contains({name, new_token});
      // A lease that the store had forgotten is taken up again to be fenced (lease/home.cc, adopt_armed): that is no
      // grant.
      const bool adopted = now.lease().phase() == record::PHASE_FENCING && now.lease().request_id().empty();
      if (new_token <= greatest && !adopted)
        fail(lease_name(name, new_token) + (again ? " was granted again" : " is not above every earlier token"));
      greatest = std::max(greatest, new_token);
      granted_.insert({name, new_token});
      ++grants_;
      if (!adopted) fair(now);
    }
  } else if (new_token != 0 && !lease::same_start(before.lease().start(), now.lease().start())) {
    fail(lease_name(name, new_token) + " changed hands");
  }
  devices_[name] = now;
}

// Fence before grant: nothing may complete under that token any more, by whatever the home said.
void Checks::lease_ended(const std::string& device, const record::Lease& lease) {
  // The operator's word, that this home is off (and was, when he said it), stands for the end of its stream. The device
  // has no other home, so nobody can be given it before that home is back and has seen a fresh stream.
  const std::string& home = lease.instance().host_id();
  if (!world_.host(home).powered || declared_dead_.contains(home)) return;
  const std::uint64_t token = lease.token();
  const auto found = world_.devices().find(device);
  if (found != world_.devices().end() && found->second->live_token() == token)
    fail(device + " was freed while transfers can still complete under token " + std::to_string(token));
}

// First come, first served, among those that want only this device.
void Checks::fair(const record::Device& device) {
  const record::Lease& lease = device.lease();
  for (const auto& [id, other] : requests_) {
    if (id == lease.request_id() || other.devices_size() != 1 || other.devices(0) != device.name()) continue;
    if (passed_over(other, lease))
      return fail(device.name() + " was granted to " + lease.request_id() + " past the waiting " + id);
  }
}

bool Checks::passed_over(const record::Request& other, const record::Lease& lease) const {
  // It had ended before, by a decision that went into the same transaction.
  if (dropped_.contains({other.start().guest_uuid(), other.devices(0)})) return false;
  // It had its turn, and a replug ended that lease, all in the same transaction.
  const std::string& guest = other.start().guest_uuid();
  const auto served = served_.find({guest, other.devices(0)});
  // The grant that is looked at is one of its own guest's.
  const int own = guest == lease.start().guest_uuid() ? 1 : 0;
  if (served != served_.end() && served->second > own) return false;
  const auto granted = requests_.find(lease.request_id());
  if (granted != requests_.end()) return goes_before(other, granted->second);
  // Asked and granted within one transaction, so the record never knew it as waiting: it came last.
  return other.reservation() || other.priority() >= world_.priority_of(lease.request_id());
}

void Checks::event_written(const std::optional<std::string>& value) {
  const auto event = parse<record::Event>(value);
  if (event.kind() == "granted") ++served_[{event.guest_uuid(), event.device()}];
  if (event.kind() == "declared-dead") declared_dead_.insert(event.host());
  if (event.kind() == "cancelled" || event.kind() == "timed-out") dropped_.insert({event.guest_uuid(), event.device()});
}

void Checks::request_written(const std::string& id, const std::optional<std::string>& value) {
  if (value) {
    requests_[id] = parse<record::Request>(value);
  } else {
    requests_.erase(id);
  }
}

void Checks::host_written(const std::string& id, const std::optional<std::string>& value) {
  const bool was_gone = hosts_[id].gone();
  hosts_[id] = parse<record::Host>(value);
  if (hosts_[id].gone() && !was_gone) gone_at_[id] = world_.kernel().now();
}

void Checks::store_went_back(bool repaired) {
  for (const auto& [name, device] : devices_) {
    if (device.has_lease()) forgotten_.insert({name, device.lease().token()});
  }
  devices_.clear();
  requests_.clear();
  hosts_.clear();
  holder_ = nullptr;
  epoch_ = 0;
  for (const auto& [key, value] : world_.store().entries()) {
    std::string name = key;
    if (name == lease::kTermKey) last_term_ = parse<record::Term>(value).term();
    if (name == lease::kMetaKey) epoch_ = parse<record::Meta>(value).epoch();
    if (take(name, lease::kDevicePrefix)) devices_[name].ParseFromString(value);
    if (take(name, lease::kRequestPrefix)) requests_[name].ParseFromString(value);
    if (take(name, lease::kHostPrefix)) hosts_[name].ParseFromString(value);
  }
  term_of_.clear();
  went_back_ = !repaired;
  if (went_back_) forget_what_nobody_remembers();
}

void Checks::home_forgot() {
  if (went_back_) forget_what_nobody_remembers();
}

void Checks::meta_written(const std::optional<std::string>& value) {
  const std::uint64_t epoch = parse<record::Meta>(value).epoch();
  if (epoch > epoch_) went_back_ = false;
  epoch_ = epoch;
}

// Down to what the record and the homes' disks say.
void Checks::forget_what_nobody_remembers() {
  for (auto& [name, greatest] : greatest_granted_) {
    greatest = devices_[name].last_token();
    for (const auto& [id, host] : world_.hosts()) {
      const auto file = host.disk.find("home");
      if (file == host.disk.end() || !file->second.durable) continue;
      const auto home = host::decode_home(*file->second.durable, id, "home");
      if (!home) continue;
      for (const home::Floor& floor : home->floors()) {
        if (floor.device() == name) greatest = std::max({greatest, floor.armed(), floor.fenced()});
      }
    }
    greatest_live_[name] = std::min(greatest_live_[name], greatest);
  }
}

// --- At whoever was promised something -------------------------------------------------------------

void Checks::acknowledged(const command::Reply& reply) {
  for (const command::Grant& grant : reply.grants()) {
    if (!granted_.contains({grant.device(), grant.token()}))
      fail(lease_name(grant.device(), grant.token()) + " was acknowledged, but it is not in the record");
  }
}

const lease::State* Checks::memory() const {
  if (holder_ == nullptr || holder_->dead) return nullptr;
  const HostState& host = world_.host(holder_->machine->id);
  if (!host.daemon || &host.daemon->process() != holder_) return nullptr;
  const cluster::Coordinator* coordinator = host.daemon->coordinator();
  if (coordinator == nullptr || coordinator->term() != last_term_ || coordinator->doubtful()) return nullptr;
  return coordinator->state();
}

std::string Checks::differs(const lease::State& memory, const std::string& key) const {
  const bool decided = key.starts_with(lease::kDevicePrefix) || key.starts_with(lease::kRequestPrefix) ||
                       key.starts_with(lease::kHostPrefix) || key == lease::kMetaKey;
  if (!decided || lease::encode_key(memory, key).value == world_.store().value(key)) return "";
  return "the coordinator's memory of " + key + " is not what the record says";
}

std::string Checks::differs_anywhere() const {
  const lease::State* there = memory();
  if (there == nullptr) return "";
  std::size_t records = 0;
  for (const auto& [key, record] : world_.store().records()) {
    if (std::string different = differs(*there, key); !different.empty()) return different;
    records += key.starts_with(lease::kDevicePrefix) || key.starts_with(lease::kRequestPrefix) ||
                       key.starts_with(lease::kHostPrefix)
                   ? 1
                   : 0;
  }
  const std::size_t remembered = there->devices.size() + there->requests.size() + there->hosts.size();
  if (records == remembered) return "";
  return "the coordinator remembers " + std::to_string(remembered) + " records, there are " + std::to_string(records);
}

// The coordinator's memory is what another one would make of the record. While a transaction is under way nothing else
// is decided, so this holds at the instant at which it is done. What was written is compared each time, all of it now
// and then.
void Checks::compare_states() {
  constexpr std::uint64_t kAllEach = 32;
  if (++transactions_ % kAllEach == 0) {
    if (const std::string different = differs_anywhere(); !different.empty()) fail(different);
    return;
  }
  const lease::State* there = memory();
  if (there == nullptr) return;
  for (const std::string& key : written_) {
    if (const std::string different = differs(*there, key); !different.empty()) return fail(different);
  }
}

// --- In the end ------------------------------------------------------------------------------------

std::string Checks::unsettled() const {
  constexpr Ns kQuiet = 10 * kSecond;
  if (holder_ == nullptr || holder_->dead) return "no coordinator long after the last fault";
  if (world_.kernel().now() < last_election_ + kQuiet)
    return "an election of term " + std::to_string(last_term_) + " long after the last fault";
  if (std::string different = differs_anywhere(); !different.empty()) return different;
  for (const auto& asked : world_.asked()) {
    if (!asked->answered && asked->by != nullptr && !asked->by->dead) return "never answered: " + asked->what;
  }
  for (const auto& [id, host] : world_.hosts()) {
    const auto record = hosts_.find(id);
    const bool session =
        record != hosts_.end() && !record->second.gone() && record->second.boot_id() == host.machine->boot_id;
    if (!host.up() || session) continue;
    const cluster::Router& way = host.daemon->node().router();
    return id + " is up, but has no session long after the last fault; " +
           (way.ready() ? "it has a coordinator, " + way.coordinator().host_id() : way.trouble());
  }
  for (const auto& [name, device] : devices_) {
    if (std::string why = unsettled_device(name, device); !why.empty()) return why;
  }
  return "";
}

std::string Checks::unsettled_device(const std::string& name, const record::Device& device) const {
  const auto real = world_.devices().find(name);
  if (real == world_.devices().end()) return "";
  const bool present =
      std::any_of(device.homes().begin(), device.homes().end(), [](const auto& home) { return home.present(); });
  if (real->second->plugged() && !device.has_lease() && !present)
    return name + " is plugged in, but absent in the record long after the last fault";
  if (!device.has_lease()) return "";
  if (device.lease().phase() == record::PHASE_FENCING)
    return lease_name(name, device.lease().token()) + " is still being fenced long after the last fault";
  const auto guest = world_.guests().find(device.lease().guest_name());
  if (guest == world_.guests().end() || guest->second.qemu == nullptr ||
      guest->second.host_id != device.lease().start().host_id())
    return lease_name(name, device.lease().token()) + " is held by guest " + device.lease().guest_name() +
           ", which does not run there";
  return "";
}

}  // namespace usblease::sim
