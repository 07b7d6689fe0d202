// Who gets what: requests, their order, and grants.
#include <algorithm>
#include <set>

#include "common/mutant.h"
#include "daemon/lease/step.h"

namespace usblease::lease {
namespace {

bool goes_before(const record::Request* a, const record::Request* b) {
  if (a->reservation() != b->reservation()) return a->reservation();
  if (a->priority() != b->priority()) return a->priority() > b->priority();
  return MUTANT(last_come_first_served) ? a->seq() > b->seq() : a->seq() < b->seq();
}

std::vector<const record::Request*> in_order(const State& state) {
  std::vector<const record::Request*> out;
  for (const auto& [id, request] : state.requests) out.push_back(&request);
  std::sort(out.begin(), out.end(), goes_before);
  return out;
}

bool names(const record::Request& request, const std::string& device) {
  return std::find(request.devices().begin(), request.devices().end(), device) != request.devices().end();
}

bool allows(const record::Policy& policy, const std::string& guest_name, const std::string& guest_uuid) {
  if (policy.guests().empty()) return true;
  return std::any_of(policy.guests().begin(), policy.guests().end(),
                     [&](const std::string& guest) { return guest == guest_name || guest == guest_uuid; });
}

// Empty: the policy has nothing against it.
std::string objection(const record::Device& device, const std::string& guest_name, const std::string& guest_uuid,
                      std::uint64_t duration_s) {
  const record::Policy& policy = device.policy();
  if (!allows(policy, guest_name, guest_uuid))
    return "the policy of " + device.name() + " does not allow guest " + guest_name;
  if (policy.until_max_s() != 0 && duration_s > policy.until_max_s())
    return "the policy of " + device.name() + " allows at most " + std::to_string(policy.until_max_s()) + " s";
  return "";
}

// Which rungs can hold a device of this kind at all.
bool applies(record::Rung rung, record::DeviceKind kind) {
  const bool on_usb = rung == record::RUNG_KERNEL || rung == record::RUNG_UNBIND || rung == record::RUNG_DESTROY;
  const bool on_stream = rung == record::RUNG_RELAY;
  if (kind == record::DEVICE_KIND_ENDPOINT) return !on_usb;
  return !on_stream;
}

bool has_rung(const record::Host& home, record::DeviceKind kind, record::Rung least) {
  if (least == record::RUNG_UNSPECIFIED) return true;
  return std::any_of(home.rungs().begin(), home.rungs().end(),
                     [&](int rung) { return rung >= least && applies(static_cast<record::Rung>(rung), kind); });
}

bool meets_policy(const State& state, const record::Device& device, const record::Presence& home) {
  return has_rung(state.hosts.at(home.instance().host_id()), home.identity().kind(), device.policy().min_rung());
}

// A device on its home's own bus reaches only the guests of that host. Nowhere or in conflict: nobody can tell yet.
bool in_reach(const State& state, const record::Device& device, const record::Start& start) {
  const auto homes = claims(state, device);
  return homes.size() != 1 || homes.front()->identity().kind() != record::DEVICE_KIND_USB ||
         homes.front()->instance().host_id() == start.host_id();
}

// Free at a home that has not said its floors to this coordinator: a moment after an election. Never a lock.
bool awaits_home(const State& state, const record::Device& device) {
  const auto homes = claims(state, device);
  return homes.size() == 1 && !device.has_lease() && !MUTANT(floors_may_come_later) &&
         state.unheard.contains(homes.front()->instance().host_id());
}

// The home where the device can be granted now; nullptr: nowhere. Not for locks.
const record::Presence* home_for_grant(const State& state, const record::Device& device) {
  if (availability(state, device) != Availability::kFree || awaits_home(state, device)) return nullptr;
  const record::Presence* home = claims(state, device).front();
  if (takes_no_more(state, home->instance().host_id())) return nullptr;
  return meets_policy(state, device, *home) ? home : nullptr;
}

bool grantable(const State& state, const record::Device& device) {
  return is_lock(device.name()) ? !device.has_lease() : home_for_grant(state, device) != nullptr;
}

// What a lease of the device, which is grantable, would be bound to. Of a lock: the boot of its holder's host.
record::Instance instance_for_grant(const State& state, const record::Device& device, const record::Start& start) {
  if (!is_lock(device.name())) return home_for_grant(state, device)->instance();
  record::Instance instance;
  instance.set_host_id(start.host_id());
  instance.set_boot_id(start.boot_id());
  instance.set_counter(1);
  return instance;
}

bool held_by(const record::Device& device, const record::Start& start) {
  return device.has_lease() && device.lease().phase() == record::PHASE_GRANTED &&
         same_start(device.lease().start(), start);
}

std::size_t locks(const State& state) {
  const auto& devices = state.devices;
  return static_cast<std::size_t>(
      std::count_if(devices.begin(), devices.end(), [](const auto& device) { return is_lock(device.first); }));
}

record::Request make_request(const command::Acquire& c, std::uint64_t seq, std::uint64_t now_unix_s) {
  record::Request request;
  request.set_id(c.request_id());
  request.set_seq(seq);
  request.set_priority(c.priority());
  for (const auto& name : std::set<std::string>(c.devices().begin(), c.devices().end())) request.add_devices(name);
  *request.mutable_start() = c.start();
  request.set_guest_name(c.guest_name());
  request.set_principal(c.principal());
  request.set_duration_s(c.duration_s());
  request.set_wait_ms(c.wait_ms());
  request.set_reservation(c.reservation());
  for (const auto& name : std::set<std::string>(c.attach_devices().begin(), c.attach_devices().end()))
    request.add_attach_devices(name);
  request.set_queued_unix_s(now_unix_s);
  return request;
}

}  // namespace

std::vector<const record::Request*> queue_of(const State& state, const std::string& device) {
  std::vector<const record::Request*> out;
  for (const auto& [id, request] : state.requests) {
    if (names(request, device)) out.push_back(&request);
  }
  std::sort(out.begin(), out.end(), goes_before);
  return out;
}

std::map<std::string, std::size_t> queue_lengths(const State& state) {
  std::map<std::string, std::size_t> out;
  for (const auto& [id, request] : state.requests) {
    for (const auto& name : request.devices()) ++out[name];
  }
  return out;
}

Availability availability(const State& state, const record::Device& device) {
  if (device.has_lease()) return Availability::kLeased;
  if (is_lock(device.name())) return Availability::kFree;
  switch (claims(state, device).size()) {
    case 0:
      return Availability::kAbsent;
    case 1:
      return Availability::kFree;
    default:
      return Availability::kConflict;
  }
}

std::vector<command::Obstacle> obstacles_of(const State& state, const record::Request& request) {
  std::vector<command::Obstacle> out;
  for (const auto& name : request.devices()) {
    const auto found = state.devices.find(name);
    if (found == state.devices.end()) continue;
    const record::Device& device = found->second;
    if (held_by(device, request.start())) continue;
    const auto ahead = std::count_if(state.requests.begin(), state.requests.end(), [&](const auto& entry) {
      return entry.first != request.id() && goes_before(&entry.second, &request) && names(entry.second, name);
    });
    if (ahead == 0 && (grantable(state, device) || awaits_home(state, device))) continue;
    command::Obstacle& obstacle = out.emplace_back();
    obstacle.set_device(name);
    obstacle.set_ahead(static_cast<std::uint32_t>(ahead));
    if (device.has_lease()) {
      obstacle.set_guest(device.lease().guest_name());
      obstacle.set_host(device.lease().start().host_id());
      obstacle.set_token(device.lease().token());
      obstacle.set_until_unix_s(device.lease().until_unix_s());
      obstacle.set_ending(device.lease().phase() == record::PHASE_FENCING);
    }
  }
  return out;
}

// A client that lost the answer asks again with the same id: it gets the same grant, the same place, or the news that
// its lease has ended; never a second lease.
bool Step::answer_repeat(const command::Acquire& c) {
  const std::set<std::string> devices(c.devices().begin(), c.devices().end());
  const auto refused = [&](command::Code code, const std::string& message) {
    refuse(code, message);
    return true;
  };
  if (const auto waiting = state_.requests.find(c.request_id()); waiting != state_.requests.end()) {
    const record::Request& request = waiting->second;
    if (!same_start(request.start(), c.start()))
      return refused(command::CODE_REFUSED, "the request id " + c.request_id() + " belongs to another guest's start");
    if (!std::equal(devices.begin(), devices.end(), request.devices().begin(), request.devices().end()))
      return refused(command::CODE_REFUSED, "the request id " + c.request_id() + " waits for other devices already");
    decision_.reply.mutable_status()->set_code(command::CODE_QUEUED);
    for (auto& obstacle : obstacles_of(state_, request)) *decision_.reply.add_obstacles() = std::move(obstacle);
    return true;
  }
  bool granted = false;
  bool all_held = true;
  for (const auto& name : devices) {
    const record::Device* device = find(name);
    if (device == nullptr) return false;
    const bool ours = device->has_lease() && device->lease().request_id() == c.request_id();
    if (ours && !same_start(device->lease().start(), c.start()))
      return refused(command::CODE_REFUSED, "the request id " + c.request_id() + " belongs to another guest's start");
    if ((ours && device->lease().phase() != record::PHASE_GRANTED) || device->last_request_id() == c.request_id())
      return refused(command::CODE_REFUSED, "this request was granted before, and its lease has ended");
    granted = granted || ours;
    all_held = all_held && held_by(*device, c.start());
  }
  if (granted && !all_held)
    return refused(command::CODE_REFUSED,
                   "the request id " + c.request_id() + " was granted for other devices already");
  return all_held && answer_held(c);
}

// All of it is held by this start already, under whatever request: the same grant again, whatever has changed since.
bool Step::answer_held(const command::Acquire& c) {
  for (const auto& name : std::set<std::string>(c.devices().begin(), c.devices().end())) {
    const record::Lease& lease = find(name)->lease();
    command::Grant& grant = *decision_.reply.add_grants();
    grant.set_device(name);
    grant.set_token(lease.token());
    *grant.mutable_instance() = lease.instance();
  }
  return true;
}

bool Step::refuse_now(const command::Acquire& c) {
  const auto refused = [&](command::Code code, const std::string& message) {
    refuse(code, message);
    return true;
  };
  for (const auto& name : c.devices()) {
    if (is_lock(name)) {
      if (find(name) == nullptr && locks(state_) >= kLocksMax)
        return refused(command::CODE_REFUSED, "the cluster has " + std::to_string(kLocksMax) +
                                                  " locks already; take the name of one that is not needed any more");
      continue;
    }
    const record::Device* device = find(name);
    if (device == nullptr)
      return refused(command::CODE_NOT_FOUND, "there is no device " + name + "; `usblease list` shows what there is");
    const std::string against = objection(*device, c.guest_name(), c.start().guest_uuid(), c.duration_s());
    if (!against.empty()) return refused(command::CODE_REFUSED, against);
    const auto homes = claims(state_, *device);
    if (!in_reach(state_, *device, c.start())) {
      return refused(command::CODE_REFUSED,
                     name + " is plugged into the USB bus of " + homes.front()->instance().host_id() + ", and guest " +
                         c.guest_name() + " runs on " + c.start().host_id() +
                         ": migrate the guest there, or plug the device in here, or offer it over usbredir");
    }
    if (homes.size() == 1 && !meets_policy(state_, *device, *homes.front())) {
      return refused(command::CODE_REFUSED, "the policy of " + name + " demands a stronger fence than its home " +
                                                homes.front()->instance().host_id() +
                                                " has; see `usblease host info` there");
    }
  }
  if (!state_.meta.behind().empty()) return refused(command::CODE_UNAVAILABLE, state_.meta.behind());
  if (live_host(state_, c.start().host_id(), c.start().boot_id()) == nullptr) {
    return refused(command::CODE_REFUSED, "host " + c.start().host_id() +
                                              " is not registered under this boot id, or was counted as gone; it must "
                                              "register again");
  }
  if (takes_no_more(state_, c.start().host_id())) {
    return refused(command::CODE_REFUSED, "host " + c.start().host_id() +
                                              " is being drained or removed, so its guests get nothing new; "
                                              "`usblease host undrain` ends a drain");
  }
  if (state_.requests.size() >= kRequestsMax) {
    return refused(command::CODE_UNAVAILABLE,
                   "the queue is full (" + std::to_string(kRequestsMax) + " requests); try again later");
  }
  return false;
}

// A reservation goes before all others because its guest has the device already, under the start that migrates away.
// Without such a lease it is a request like others. The end that was asked for moves along.
void Step::shape_reservation(record::Request& request) {
  bool migrates = false;
  std::uint64_t until_s = 0;
  for (const auto& name : request.devices()) {
    const record::Device& device = *find(name);
    if (!device.has_lease() || device.lease().start().guest_uuid() != request.start().guest_uuid()) continue;
    migrates = true;
    const std::uint64_t end_s = device.lease().until_unix_s();
    if (end_s != 0) until_s = until_s == 0 ? end_s : std::min(until_s, end_s);
  }
  request.set_reservation(migrates);
  if (!migrates || until_s == 0) return;
  const std::uint64_t left_s = until_s > context_.now_unix_s ? until_s - context_.now_unix_s : 1;
  request.set_duration_s(request.duration_s() == 0 ? left_s : std::min(left_s, request.duration_s()));
}

void Step::acquire(const command::Acquire& c) {
  if (answer_repeat(c) || refuse_now(c)) return;
  // A lock is there as soon as somebody wants it.
  if (const std::string& name = c.devices(0); is_lock(name) && find(name) == nullptr) {
    if (state_.devices.size() >= kDevicesMax)
      return refuse(command::CODE_REFUSED, "the cluster has " + std::to_string(kDevicesMax) + " devices already");
    record::Device& lock = state_.devices[name];
    lock.set_name(name);
    touch(lock);
  }
  record::Request request = make_request(c, state_.next_seq(), context_.now_unix_s);
  if (request.reservation()) shape_reservation(request);
  const auto queued = state_.requests.emplace(request.id(), request).first;
  grant_waiting();
  const auto own = std::find_if(decision_.settled.begin(), decision_.settled.end(),
                                [&](const Settled& s) { return s.request_id == request.id(); });
  if (own != decision_.settled.end()) {
    // Granted at once: the answer is the reply itself, nobody waits for it elsewhere, and no record was ever written.
    decision_.reply = std::move(own->reply);
    decision_.settled.erase(own);
    dirty_.erase(request_key(request.id()));
    return;
  }
  for (auto& obstacle : obstacles_of(state_, request)) *decision_.reply.add_obstacles() = std::move(obstacle);
  if (c.wait_ms() == 0) {
    state_.requests.erase(queued);
    return refuse_unavailable(c);
  }
  decision_.reply.mutable_status()->set_code(command::CODE_QUEUED);
  dirty_.insert(request_key(request.id()));
  event("queued", request, "");
}

void Step::refuse_unavailable(const command::Acquire& c) {
  for (const auto& name : c.devices()) {
    const record::Device& device = *find(name);
    if (!awaits_home(state_, device)) continue;
    decision_.reply.clear_obstacles();  // of the moment, all of them
    return refuse(command::CODE_UNAVAILABLE, "there is a new coordinator, and " +
                                                 claims(state_, device).front()->instance().host_id() +
                                                 ", the home of " + name + ", has not spoken to it yet; try again");
  }
  refuse(command::CODE_REFUSED, "not available now");
}

void Step::cancel_request(const command::CancelRequest& c) {
  if (!state_.requests.contains(c.request_id())) return;
  drop_request(c.request_id(), c.code() == command::CODE_UNSPECIFIED ? command::CODE_REFUSED : c.code(), c.reason());
  grant_waiting();
}

void Step::drop_request(const std::string& id, command::Code code, const std::string& why) {
  auto dropped = state_.requests.extract(id);
  const record::Request& request = dropped.mapped();
  Settled settled;
  settled.request_id = id;
  settled.reply.mutable_status()->set_code(code);
  settled.reply.mutable_status()->set_message(why);
  if (code == command::CODE_TIMED_OUT) {
    for (auto& obstacle : obstacles_of(state_, request)) *settled.reply.add_obstacles() = std::move(obstacle);
  }
  decision_.settled.push_back(std::move(settled));
  dirty_.insert(request_key(id));
  event(code == command::CODE_TIMED_OUT ? "timed-out" : "cancelled", request, why);
}

void Step::drop_requests_of_host(const std::string& host_id, const std::string& boot_id_kept, const std::string& why) {
  std::vector<std::string> dropped;
  for (const auto& [id, request] : state_.requests) {
    if (request.start().host_id() == host_id && request.start().boot_id() != boot_id_kept) dropped.push_back(id);
  }
  for (const auto& id : dropped) drop_request(id, command::CODE_REFUSED, why);
}

void Step::drop_requests_against_policy(const record::Device& device) {
  std::vector<std::pair<std::string, std::string>> dropped;
  for (const auto& [id, request] : state_.requests) {
    if (!names(request, device.name())) continue;
    std::string against = objection(device, request.guest_name(), request.start().guest_uuid(), request.duration_s());
    if (!against.empty()) dropped.emplace_back(id, std::move(against));
  }
  for (const auto& [id, against] : dropped) drop_request(id, command::CODE_REFUSED, against);
}

// Strict order: a request that only waits for others to end their leases blocks every later one that names one of its
// devices, even one that is free. So a request for a set cannot be starved by requests for its parts, and two sets
// cannot deadlock: nothing is taken before all of it can be. A request for a device that nobody could be granted now
// (absent, in conflict, out of reach, its home too weak) may wait for ever, and blocks nobody.
void Step::grant_waiting() {
  if (!state_.meta.behind().empty()) return;
  std::set<std::string> blocked;
  for (const record::Request* request : in_order(state_)) {
    bool now = true;
    bool reachable = true;
    for (const auto& name : request->devices()) {
      const record::Device& device = state_.devices.at(name);
      if (held_by(device, request->start())) continue;
      const bool ours = in_reach(state_, device, request->start());
      const bool free = ours && grantable(state_, device);
      now = now && free && !blocked.contains(name);
      reachable = reachable && ours && (free || device.has_lease() || awaits_home(state_, device));
    }
    if (now) {
      grant(record::Request(*request));
    } else if (reachable) {
      blocked.insert(request->devices().begin(), request->devices().end());
    }
  }
}

void Step::grant(const record::Request& request) {
  Settled settled;
  settled.request_id = request.id();
  settled.reply.mutable_status()->set_code(command::CODE_OK);
  dirty_.insert(request_key(request.id()));
  state_.requests.erase(request.id());
  for (const auto& name : request.devices()) {
    record::Device& device = state_.devices.at(name);
    if (!held_by(device, request.start())) {
      const record::Instance instance = instance_for_grant(state_, device, request.start());
      const std::uint64_t first_of_epoch = (state_.meta.epoch() << kTokenCounterBits) + 1;
      device.set_last_token(std::max(device.last_token() + (MUTANT(token_used_twice) ? 0 : 1), first_of_epoch));
      record::Lease& lease = *device.mutable_lease();
      lease.set_token(device.last_token());
      *lease.mutable_instance() = instance;
      *lease.mutable_start() = request.start();
      lease.set_guest_name(request.guest_name());
      lease.set_request_id(request.id());
      lease.set_phase(record::PHASE_GRANTED);
      lease.set_granted_unix_s(context_.now_unix_s);
      const std::uint64_t duration_s = request.duration_s() != 0 ? request.duration_s() : device.policy().until_max_s();
      lease.set_until_unix_s(duration_s == 0 ? 0 : context_.now_unix_s + duration_s);
      lease.set_principal(request.principal());
      const auto& attach = request.attach_devices();
      lease.set_attach(std::find(attach.begin(), attach.end(), name) != attach.end());
      touch(device);
      event("granted", device, request.principal(), "");
    }
    command::Grant& grant = *settled.reply.add_grants();
    grant.set_device(name);
    grant.set_token(device.lease().token());
    *grant.mutable_instance() = device.lease().instance();
  }
  decision_.settled.push_back(std::move(settled));
}

}  // namespace usblease::lease
