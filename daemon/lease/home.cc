// What homes and hosts say: registration, inventory, floors, and what their end means for leases.
#include <algorithm>

#include "common/mutant.h"
#include "daemon/lease/step.h"

namespace usblease::lease {
namespace {

record::Presence* presence_at(record::Device& device, const std::string& host_id) {
  for (auto& home : *device.mutable_homes()) {
    if (home.instance().host_id() == host_id) return &home;
  }
  return nullptr;
}

// A device that was forgotten at this home, or that never was there, is of the kind that others say.
record::DeviceKind kind_at(record::Device& device, const std::string& host_id) {
  if (const record::Presence* home = presence_at(device, host_id)) return home->identity().kind();
  return device.homes().empty() ? record::DEVICE_KIND_UNSPECIFIED : device.homes(0).identity().kind();
}

void bar(record::Host& host, const std::string& boot_id) {
  if (boot_id.empty() || is_barred(host, boot_id)) return;
  host.add_barred_boot_ids(boot_id);
  if (host.barred_boot_ids_size() > static_cast<int>(kBarredBootIdsMax))
    host.mutable_barred_boot_ids()->DeleteSubrange(0, 1);
}

// A reboot ends an instance on the host's own bus, and the holder of a lock. An endpoint outlives its home: there only
// a fresh stream (a new instance, report_device) or the home's confirmation proves that the old stream is dead.
bool ends_with_boot(record::Device& device, const std::string& host_id) {
  return is_lock(device.name()) || kind_at(device, host_id) == record::DEVICE_KIND_USB;
}

bool equal(const google::protobuf::MessageLite& a, const google::protobuf::MessageLite& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

}  // namespace

void Step::register_host(const command::RegisterHost& c) {
  const std::string& id = c.host().id();
  if (refuse_stranger(id) || refuse_outdated(c.host())) return;
  const auto known = state_.hosts.find(id);
  if (known == state_.hosts.end() && state_.hosts.size() >= kHostsMax) {
    return refuse(command::CODE_REFUSED, "the cluster has " + std::to_string(kHostsMax) + " hosts already");
  }
  const record::Host before = known == state_.hosts.end() ? record::Host() : known->second;
  if (is_barred(before, c.host().boot_id())) {
    return refuse(command::CODE_REFUSED, "this boot of " + id +
                                             " is over: it was declared dead, or a later boot has registered; "
                                             "reboot the host");
  }
  // Another boot of the same machine proves that the earlier one has ended. Of another machine it proves nothing.
  const bool same_machine = before.machine_uuid().empty() || before.machine_uuid() == c.host().machine_uuid();
  if (!same_machine && !is_barred(before, before.boot_id())) {
    return refuse(command::CODE_REFUSED, "another machine is host " + id +
                                             " already: give each its own host_id, or, if that machine was replaced, "
                                             "run `usblease host declare-dead " +
                                             id + "` first");
  }
  const bool rebooted = !before.boot_id().empty() && before.boot_id() != c.host().boot_id();
  record::Host now = c.host();
  *now.mutable_barred_boot_ids() = before.barred_boot_ids();
  if (rebooted) bar(now, before.boot_id());
  now.set_draining(before.draining());
  now.set_gone(false);
  if (!equal(before, now)) {
    state_.hosts[id] = now;
    touch(now);
  }
  state_.unheard.erase(id);
  if (before.gone()) forget_claims_of(id, "", "its home came back and has not reported it yet");
  if (rebooted) end_what_a_reboot_ends(before, now);
  if (c.has_floors()) {
    for (const command::Floor& floor : c.floors()) learn_floor(now, floor);
  } else {
    supply_floors(id);
  }
  raise_versions();
  grant_waiting();
}

// What a home said in an earlier session may no longer be so; it reports again before anything is granted there. What
// it has armed it still has: to forget that would let another home's old report take a roaming device away from it.
void Step::forget_claims_of(const std::string& host_id, const std::string& boot_id_kept, const std::string& why) {
  for (auto& [name, device] : state_.devices) {
    record::Presence* home = presence_at(device, host_id);
    if (home == nullptr || !home->present() || home->instance().boot_id() == boot_id_kept) continue;
    if (device.has_lease() && same_instance(device.lease().instance(), home->instance()) &&
        live_host(state_, host_id, home->instance().boot_id()) != nullptr)
      continue;
    home->set_present(false);
    home->set_detail(why);
    touch(device);
  }
}

void Step::end_what_a_reboot_ends(const record::Host& before, const record::Host& now) {
  record::Event e;
  e.set_kind("host-rebooted");
  e.set_host(now.id());
  event(std::move(e));
  drop_requests_of_host(before.id(), now.boot_id(), "the guest's host rebooted");
  forget_claims_of(now.id(), now.boot_id(), "its home rebooted");
  for (auto& [name, device] : state_.devices) {
    if (!device.has_lease()) continue;
    const record::Instance& instance = device.lease().instance();
    if (instance.host_id() != now.id() || instance.boot_id() == now.boot_id()) continue;
    if (ends_with_boot(device, now.id()) || MUTANT(reboot_ends_endpoint)) {
      end_lease(device, "instance-ended", "its home rebooted");
    } else {
      begin_fencing(device, "its home rebooted", "");
    }
  }
  fence_leases_of_guests_on(now.id(), now.boot_id(), "the guest's host rebooted");
}

void Step::fence_leases_of_guests_on(const std::string& host_id, const std::string& boot_id_kept,
                                     const std::string& reason) {
  for (auto& [name, device] : state_.devices) {
    if (!device.has_lease()) continue;
    const record::Start& start = device.lease().start();
    if (start.host_id() != host_id || start.boot_id() == boot_id_kept) continue;
    // A local guest of an unreachable host: nobody can fence it, nobody else can have it, and it may still be well
    // (isolation). If the host comes back in time, the lease goes on.
    const bool local = device.lease().instance().host_id() == host_id;
    if (local && state_.hosts.at(host_id).gone() && !is_barred(state_.hosts.at(host_id), start.boot_id())) continue;
    begin_fencing(device, reason, "");
  }
}

// A home with a new disk: whatever was granted so far may not be armed there again.
void Step::supply_floors(const std::string& host_id) {
  for (auto& [name, device] : state_.devices) {
    const bool leased_here = device.has_lease() && device.lease().instance().host_id() == host_id;
    if (!leased_here && presence_at(device, host_id) == nullptr) continue;
    if (leased_here) begin_fencing(device, "its home lost its floors", "");
    command::Floor& floor = *decision_.reply.add_floors();
    floor.set_device(name);
    // The home has still to confirm the token of the lease itself.
    floor.set_fenced(leased_here ? device.lease().token() - 1 : device.last_token());
    if (!leased_here) continue;
    // Nobody knows any more whether it was armed, so the home must prove the end of its stream.
    floor.set_armed(device.lease().token());
    floor.set_instance(device.lease().instance().counter());
    floor.set_boot_id(device.lease().instance().boot_id());
  }
}

void Step::learn_floor(const record::Host& host, const command::Floor& floor) {
  const std::uint64_t greatest = std::max(floor.armed(), floor.fenced());
  record::Device* device = find(floor.device());
  // After a repair the epoch alone is above whatever was granted before it.
  const std::uint64_t known =
      std::max(device != nullptr ? device->last_token() : 0, state_.meta.epoch() << kTokenCounterBits);
  if (greatest > known && !MUTANT(floors_prove_nothing)) note_store_behind(host.id(), floor.device(), greatest, known);
  if (device == nullptr) return;
  // A store that never went back in this epoch knows how each of its tokens ended.
  const bool remembered = state_.meta.behind().empty() && epoch_of(floor.armed()) == state_.meta.epoch();
  if (greatest > device->last_token() && !MUTANT(floors_prove_nothing)) {
    device->set_last_token(greatest);
    touch(*device);
  }
  const std::uint64_t leased = device->has_lease() ? device->lease().token() : 0;
  if (floor.armed() <= floor.fenced() || floor.armed() <= leased || remembered) return;
  const record::Presence* home = presence_at(*device, host.id());
  const bool rebooted = floor.boot_id() != host.boot_id();
  const bool newer_instance =
      home != nullptr && home->instance().boot_id() == floor.boot_id() && home->instance().counter() > floor.instance();
  const bool over = newer_instance || (rebooted && ends_with_boot(*device, host.id()));
  if (!over) adopt_armed(*device, host.id(), floor);
}

// Armed there, not fenced, and unknown here: nobody else may have the device until that home confirms.
void Step::adopt_armed(record::Device& device, const std::string& host_id, const command::Floor& floor) {
  // The greater token was granted after the lesser one had ended.
  if (device.has_lease()) end_lease(device, "superseded", host_id + " has armed a greater token since");
  record::Lease& lease = *device.mutable_lease();
  lease.set_token(floor.armed());
  lease.mutable_instance()->set_host_id(host_id);
  lease.mutable_instance()->set_boot_id(floor.boot_id());
  lease.mutable_instance()->set_counter(floor.instance());
  begin_fencing(device, "armed at " + host_id + ", but the store does not know this lease", "");
}

void Step::note_store_behind(const std::string& host_id, const std::string& device, std::uint64_t floor,
                             std::uint64_t known) {
  if (floor > state_.meta.floor_max()) {
    state_.meta.set_floor_max(floor);
    touch_meta();
  }
  if (!state_.meta.behind().empty()) return;
  state_.meta.set_behind("the store went back in time: host " + host_id + " has seen token " + std::to_string(floor) +
                         " of " + device + ", the store knows only " + std::to_string(known) +
                         "; nothing is granted until `usblease cluster repair --new-epoch`");
  touch_meta();
  record::Event e;
  e.set_kind("store-behind");
  e.set_host(host_id);
  e.set_device(device);
  e.set_token(floor);
  e.set_text(state_.meta.behind());
  event(std::move(e));
}

void Step::note_new_instance(record::Device& device, const record::Presence& presence) {
  if (!device.has_lease()) return;
  const record::Instance& leased = device.lease().instance();
  const record::Instance& seen = presence.instance();
  bool ended = false;
  if (leased.host_id() == seen.host_id()) {
    ended = leased.boot_id() != seen.boot_id() || leased.counter() < seen.counter();
  } else {
    const record::Presence* old_home = presence_at(device, leased.host_id());
    const auto old_host = state_.hosts.find(leased.host_id());
    const bool left =
        old_home == nullptr || !old_home->present() || old_host == state_.hosts.end() || old_host->second.gone();
    ended = device.policy().roams() && left;
  }
  // A new enumeration at the same home, or of a roaming device at another one while the old home does not claim it any
  // more: the old instance cannot complete a transfer again. The lease does not pass on to the new instance.
  if (ended) end_lease(device, "instance-ended", "a new instance appeared at " + seen.host_id());
}

void Step::report_device(const command::ReportDevice& c) {
  const record::Presence& report = c.presence();
  const std::string& host_id = report.instance().host_id();
  if (live_host(state_, host_id, report.instance().boot_id()) == nullptr)
    return refuse(
        command::CODE_REFUSED,
        "host " + host_id + " is not registered under this boot id, or was counted as gone; it must register again");
  record::Device* device = find(c.device());
  record::Presence* home = device != nullptr ? presence_at(*device, host_id) : nullptr;
  if (device == nullptr && state_.devices.size() >= kDevicesMax)
    return refuse(command::CODE_REFUSED, "the cluster has " + std::to_string(kDevicesMax) + " devices already");
  if (device != nullptr && home == nullptr && device->homes_size() >= static_cast<int>(kHomesPerDeviceMax))
    return refuse(command::CODE_REFUSED, c.device() + " has 16 homes already");
  if (home != nullptr && report.instance().boot_id() == home->instance().boot_id() &&
      report.instance().counter() < home->instance().counter())
    return refuse(command::CODE_REFUSED, c.device() + ": instance " + std::to_string(report.instance().counter()) +
                                             " is older than the one already known at " + host_id + ", " +
                                             std::to_string(home->instance().counter()));

  if (device == nullptr) {
    device = &state_.devices[c.device()];
    device->set_name(c.device());
  }
  if (home == nullptr) home = device->add_homes();
  const bool new_instance = !same_instance(home->instance(), report.instance());
  const bool appeared = report.present() && (!home->present() || new_instance);
  const bool vanished = home->present() && !report.present();
  if (!equal(*home, report)) {
    *home = report;
    touch(*device);
  }
  if (!equal(device->policy(), c.policy())) {
    *device->mutable_policy() = c.policy();
    touch(*device);
    drop_requests_against_policy(*device);
  }
  if (appeared || vanished || new_instance) {
    record::Event e;
    e.set_kind(report.present() ? "present" : "absent");
    e.set_device(c.device());
    e.set_host(host_id);
    e.set_text(report.detail());
    event(std::move(e));
  }
  if (report.present()) note_new_instance(*device, report);
  if (vanished && device->has_lease() && device->lease().instance().host_id() == host_id)
    begin_fencing(*device, "unplugged: " + report.detail(), "");  // absence is not confirmation
  if (appeared && claims(state_, *device).size() > 1)
    event("conflict", *device, "",
          host_id + " and another live home claim it; nobody is granted it until one does not");
  grant_waiting();
}

// Worth a record: somebody tried what he may not. The device's state does not change.
void Step::note_refusals(const command::NoteRefusals& c) {
  record::Device* device = find(c.device());
  if (device == nullptr || presence_at(*device, c.host_id()) == nullptr) return;
  record::Event e;
  e.set_kind("refused");
  e.set_device(c.device());
  e.set_host(c.host_id());
  e.set_text(std::to_string(c.calls()) + " calls on it without a lease; the log of usblease-fence on " + c.host_id() +
             " says whose");
  event(std::move(e));
}

void Step::forget_device(const command::ForgetDevice& c) {
  record::Device* device = find(c.device());
  record::Presence* home = device != nullptr ? presence_at(*device, c.host_id()) : nullptr;
  if (home == nullptr) return;
  if (device->has_lease() && device->lease().instance().host_id() == c.host_id()) {
    begin_fencing(*device, "taken out of the configuration of " + c.host_id(), "");
    if (!home->present()) return;
    // Where it is stays known until the fence is confirmed: there the home can see how the stream ends.
    home->set_present(false);
    home->set_detail("taken out of the configuration; forgotten once its home has seen the end of the last stream");
    touch(*device);
    return grant_waiting();
  }
  // The record itself stays for ever: it keeps the order of tokens.
  for (int i = 0; i < device->homes_size(); ++i) {
    if (device->homes(i).instance().host_id() != c.host_id()) continue;
    device->mutable_homes()->DeleteSubrange(i, 1);
    break;
  }
  touch(*device);
  grant_waiting();
}

void Step::host_gone(const command::HostGone& c) {
  const auto found = state_.hosts.find(c.host_id());
  if (found == state_.hosts.end() || found->second.boot_id() != c.boot_id() || found->second.gone()) return;
  found->second.set_gone(true);
  touch(found->second);
  record::Event e;
  e.set_kind("host-gone");
  e.set_host(c.host_id());
  event(std::move(e));
  drop_requests_of_host(c.host_id(), "", "the guest's host is gone");
  // The token of a lock has expired there, and a lock promises no more than that (see agenda.h). Devices homed there
  // stay as they are: silence is not confirmation. Those homed elsewhere can be fenced by their homes.
  for (auto& [name, device] : state_.devices) {
    if (is_lock(name) && device.has_lease() && device.lease().instance().host_id() == c.host_id())
      end_lease(device, "expired", "its host is gone");
  }
  fence_leases_of_guests_on(c.host_id(), "", "the guest's host is gone");
  if (MUTANT(time_frees)) {
    for (auto& [name, device] : state_.devices) {
      if (device.has_lease() && device.lease().instance().host_id() == c.host_id())
        end_lease(device, "fenced", "its home is gone");
    }
  }
  grant_waiting();
}

void Step::declare_dead(const command::DeclareDead& c) {
  const auto found = state_.hosts.find(c.host_id());
  if (found == state_.hosts.end()) return refuse(command::CODE_NOT_FOUND, "there is no host " + c.host_id());
  record::Host& host = found->second;
  const std::string boot_id = c.boot_id().empty() ? host.boot_id() : c.boot_id();
  if (boot_id != host.boot_id())
    return refuse(command::CODE_REFUSED, c.host_id() + " has booted again since; nothing to declare");
  if (is_barred(host, boot_id)) return;  // a repeat
  bar(host, boot_id);
  host.set_gone(true);
  touch(host);
  record::Event e;
  e.set_kind("declared-dead");
  e.set_host(c.host_id());
  e.set_principal(c.principal());
  e.set_text("boot " + boot_id);
  event(std::move(e));
  drop_requests_of_host(c.host_id(), "", "the guest's host was declared dead");
  forget_claims_of(c.host_id(), "", "its home was declared dead");
  for (auto& [name, device] : state_.devices) {
    // Whatever boot of it: this one is the last, and the earlier ones ended before it began.
    if (!device.has_lease() || device.lease().instance().host_id() != c.host_id()) continue;
    device.mutable_lease()->set_ended_by(c.principal());
    end_lease(device, "instance-ended", "its home was declared dead");
  }
  fence_leases_of_guests_on(c.host_id(), "", "the guest's host was declared dead");
  grant_waiting();
}

void Step::new_epoch(const command::NewEpoch& c) {
  std::uint64_t least = std::max(state_.meta.epoch(), epoch_of(state_.meta.floor_max()));
  for (const auto& [name, device] : state_.devices) least = std::max(least, epoch_of(device.last_token()));
  if (c.epoch() <= least) return refuse(command::CODE_REFUSED, "the new epoch must be above " + std::to_string(least));
  if (!MUTANT(epoch_stays)) state_.meta.set_epoch(c.epoch());
  state_.meta.clear_behind();
  touch_meta();
  record::Event e;
  e.set_kind("new-epoch");
  e.set_principal(c.principal());
  e.set_token(c.epoch() << kTokenCounterBits);
  event(std::move(e));
  // What the store says of leases may be as old as the store: every one is fenced before anything is granted.
  for (auto& [name, device] : state_.devices) {
    if (!device.has_lease()) continue;
    begin_fencing(device, "the store was repaired", c.principal());
    decision_.reply.set_leases_left(decision_.reply.leases_left() + 1);
  }
  grant_waiting();
}

}  // namespace usblease::lease
