#include "daemon/host/attachments.h"

#include <algorithm>

#include "common/log.h"
#include "daemon/lease/timing.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kAttachMaxNs = 40'000 * lease::kNsPerMs;  // libvirt waits up to 30 s for a domain's lock
constexpr std::uint64_t kRetryNs = 1'000 * lease::kNsPerMs;

}  // namespace

Attachments::Attachments(Hypervisor& hypervisor, GuestSockets& sockets, Starts& starts, std::string host_id,
                         GiveBack give_back, OpenUsb open_usb)
    : hypervisor_(hypervisor),
      sockets_(sockets),
      starts_(starts),
      host_id_(std::move(host_id)),
      give_back_(std::move(give_back)),
      open_usb_(std::move(open_usb)) {}

// The lease for which the device should be in a guest of this host now.
const record::Lease* Attachments::wanted(const std::string& device) const {
  const auto found = records_.find(device);
  if (found == records_.end() || !found->second.has_lease()) return nullptr;
  const record::Lease& lease = found->second.lease();
  const bool ours = lease.attach() && lease.start().host_id() == host_id_ && lease.phase() != record::PHASE_FENCING;
  return ours ? &lease : nullptr;
}

void Attachments::on_record(const record::Device& device) {
  records_[device.name()] = device;
  drive(device.name());
}

void Attachments::on_running(const GuestStart& start) {
  for (const auto& [device, record] : records_) {
    if (record.has_lease() && record.lease().start().nonce() == start.start.nonce()) drive(device);
  }
}

void Attachments::drive(const std::string& device) {
  const record::Lease* lease = wanted(device);
  bool busy = false;
  std::vector<Name> leaving;
  for (const auto& [name, entry] : entries_) {
    if (name.second != device) continue;
    const bool right = lease != nullptr && name.first == lease->start().guest_uuid() && entry.token == lease->token();
    if (!right && entry.phase == Phase::kAttached) leaving.push_back(name);
    busy = busy || name.first == (lease != nullptr ? lease->start().guest_uuid() : std::string());
  }
  for (const Name& name : leaving) detach(name);
  if (lease == nullptr || busy) return;
  const GuestStart* start = starts_.find(lease->start());
  if (start != nullptr && start->running()) attach({lease->start().guest_uuid(), device}, *lease, *start);
}

void Attachments::attach(const Name& name, const record::Lease& lease, const GuestStart& start) {
  entries_[name] = Entry{Phase::kAttaching, lease.token()};
  const auto opened = [this, alive = std::weak_ptr(alive_), name, token = lease.token()](const Result<UsbAddress>& at) {
    if (!alive.expired()) attach_usb(name, token, at);
  };
  if (open_usb_ && open_usb_(name.second, lease, start, opened)) return;
  hypervisor_.attach_endpoint(
      name.first, name.second, sockets_.path(name.first, name.second),
      [this, alive = std::weak_ptr(alive_), name, token = lease.token()](const Result<void>& result) {
        if (!alive.expired()) attached(name, token, result);
      });
}

void Attachments::attach_usb(const Name& name, std::uint64_t token, const Result<UsbAddress>& opened) {
  if (!opened) return attached(name, token, tl::unexpected(opened.error()));
  hypervisor_.attach_usb(name.first, name.second, *opened,
                         [this, alive = std::weak_ptr(alive_), name, token](const Result<void>& result) {
                           if (alive.expired()) return;
                           attached(name, token, result);
                           // QEMU has opened it: it would have been refused else.
                           if (result) on_streaming(name.second, token);
                         });
}

void Attachments::attached(const Name& name, std::uint64_t token, const Result<void>& result) {
  const auto& [guest_uuid, device] = name;
  if (result) {
    entries_[name].phase = Phase::kAttached;
    return drive(device);  // the lease may have gone meanwhile
  }
  entries_.erase(name);
  log::warning("cannot attach", {{"DEVICE", device},
                                 {"GUEST_UUID", guest_uuid},
                                 {"TOKEN", std::to_string(token)},
                                 {"ERROR", result.error().message}});
  if (result.error().code == ErrorCode::kUnavailable) {
    // libvirt is away. The lease stands; reconcile() drives again when it is back.
    retries_[device] = run_after(kRetryNs, [this, device = device] { drive(device); });
    return;
  }
  settle(device, token, result);
  const record::Lease* lease = wanted(device);
  if (lease != nullptr && lease->token() == token) return give_back_(*lease, device, result.error().message);
  drive(device);  // for the lease that came meanwhile
}

void Attachments::detach(const Name& name) {
  entries_[name].phase = Phase::kDetaching;
  hypervisor_.detach(name.first, name.second, [this, alive = std::weak_ptr(alive_), name](const Result<void>& result) {
    if (alive.expired()) return;
    if (result) {
      entries_.erase(name);
      return drive(name.second);
    }
    // The device is fenced whatever libvirt does; this only clears it away from the guest.
    log::warning("cannot detach",
                 {{"DEVICE", name.second}, {"GUEST_UUID", name.first}, {"ERROR", result.error().message}});
    entries_[name].phase = Phase::kAttached;
    retries_[name.second] = run_after(kRetryNs, [this, device = name.second] { drive(device); });
  });
}

void Attachments::on_streaming(const std::string& device, std::uint64_t token) {
  streaming_[device] = token;
  settle(device, token, {});
}

void Attachments::on_stream_ended(const std::string& device, std::uint64_t token, const std::string& why) {
  streaming_.erase(device);
  settle(device, token, fail(ErrorCode::kUnavailable, device + " could not be attached: " + why));
  // A device that is attached without a stream is dead in the guest: the lease goes back, and drive() removes it.
  const record::Lease* lease = wanted(device);
  if (lease != nullptr && lease->token() == token) give_back_(*lease, device, why);
}

void Attachments::on_removed(const std::string& guest_uuid, const std::string& device) {
  const auto entry = entries_.find({guest_uuid, device});
  if (entry == entries_.end() || entry->second.phase != Phase::kAttached) return;
  const std::uint64_t token = entry->second.token;
  entries_.erase(entry);
  const record::Lease* lease = wanted(device);
  if (lease != nullptr && lease->token() == token) give_back_(*lease, device, "it was detached from the guest");
}

bool Attachments::may_have(const std::string& device) const {
  return !reconciled_ ||
         std::any_of(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.first.second == device; });
}

void Attachments::reconcile(const std::vector<Guest>& guests) {
  reconciled_ = true;
  for (const Guest& guest : guests) {
    for (const std::string& device : guest.attached) {
      const Name name{guest.uuid, device};
      if (entries_.contains(name)) continue;
      const record::Lease* lease = wanted(device);
      const bool leased = lease != nullptr && lease->start().guest_uuid() == guest.uuid;
      entries_[name] = Entry{Phase::kAttached, leased ? lease->token() : 0};
    }
  }
  std::vector<std::string> devices;
  for (const auto& [name, entry] : entries_) devices.push_back(name.second);
  for (const auto& [device, record] : records_) devices.push_back(device);
  for (const std::string& device : devices) drive(device);
}

void Attachments::wait(const std::string& device, std::uint64_t token, Done done) {
  if (const auto now = streaming_.find(device); now != streaming_.end() && now->second == token) return done({});
  Waiter waiter;
  waiter.done = std::move(done);
  waiter.timeout = run_after(kAttachMaxNs, [this, device, token] {
    settle(device, token,
           fail(ErrorCode::kTimedOut,
                device + " was granted, but did not reach the guest in time; see the log of usbleased"));
  });
  waiters_[{device, token}].push_back(std::move(waiter));
}

void Attachments::settle(const std::string& device, std::uint64_t token, const Result<void>& result) {
  auto waiters = waiters_.extract({device, token});
  if (waiters.empty()) return;
  for (const Waiter& waiter : waiters.mapped()) waiter.done(result);
}

}  // namespace usblease::host
