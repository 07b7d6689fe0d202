// How a lease ends: release, revocation, the end that was asked for, and the home's confirmation.
#include <algorithm>

#include "common/mutant.h"
#include "daemon/lease/fields.h"
#include "daemon/lease/step.h"

namespace usblease::lease {

// Orders the home to fence. From here on only its confirmation, or the end of the instance, frees the device.
void Step::begin_fencing(record::Device& device, const std::string& reason, const std::string& by,
                         const std::string& kind) {
  record::Lease& lease = *device.mutable_lease();
  if (lease.phase() == record::PHASE_FENCING) return;
  lease.set_phase(record::PHASE_FENCING);
  lease.set_grace_ms(0);
  if (lease.end_reason().empty()) lease.set_end_reason(cut_text(reason, kReasonBytesMax));
  if (lease.ended_by().empty()) lease.set_ended_by(by);
  if (MUTANT(grant_without_fence)) return end_lease(device, kind, reason);
  event(kind, device, by, reason);
  touch(device);
}

void Step::end_lease(record::Device& device, const std::string& kind, const std::string& how) {
  event(kind, device, device.lease().ended_by(), how);
  // A lease that the store had forgotten (adopt_armed) has no request: what is remembered stays.
  if (!device.lease().request_id().empty()) device.set_last_request_id(device.lease().request_id());
  device.clear_lease();
  touch(device);
  look_for_leavers_ = true;
}

void Step::release(const command::Release& c) {
  const auto give_back = [&](record::Device& device) {
    // A late release of one start never touches the lease of another: the whole start must match.
    const bool mutated =
        MUTANT(release_by_guest) && device.has_lease() && device.lease().start().guest_uuid() == c.start().guest_uuid();
    if (!device.has_lease() || (!mutated && !same_start(device.lease().start(), c.start()))) return;
    if (!c.request_id().empty() && device.lease().request_id() != c.request_id()) return;
    begin_fencing(device, c.reason().empty() ? "released" : c.reason(), c.principal(), "released");
  };
  if (c.devices().empty()) {
    for (auto& [name, device] : state_.devices) give_back(device);
  } else {
    for (const auto& name : c.devices()) {
      if (record::Device* device = find(name)) give_back(*device);
    }
  }
  const auto named = [&](const std::string& name) {
    return c.devices().empty() || std::find(c.devices().begin(), c.devices().end(), name) != c.devices().end();
  };
  std::vector<std::string> dropped;
  for (const auto& [id, request] : state_.requests) {
    const bool all_named = std::all_of(request.devices().begin(), request.devices().end(), named);
    const bool meant = c.request_id().empty() || c.request_id() == id;
    if (same_start(request.start(), c.start()) && all_named && meant) dropped.push_back(id);
  }
  for (const auto& id : dropped) drop_request(id, command::CODE_REFUSED, "the guest's start has ended");
  if (!dropped.empty()) grant_waiting();
}

void Step::revoke(const command::Revoke& c) {
  record::Device* device = find(c.device());
  if (device == nullptr) return refuse(command::CODE_NOT_FOUND, "there is no device " + c.device());
  if (!device->has_lease())
    return refuse(command::CODE_NOT_FOUND, c.device() + " is not leased: there is nothing to revoke");
  if (c.token() != 0 && !has_lease(*device, c.token())) {
    return refuse(command::CODE_REFUSED, c.device() + " is leased under token " +
                                             std::to_string(device->lease().token()) + ", not " +
                                             std::to_string(c.token()));
  }
  decision_.reply.set_token(device->lease().token());
  begin_revoking(*device, c.grace_ms(), c.reason(), c.principal());
}

void Step::begin_revoking(record::Device& device, std::uint32_t grace_ms, const std::string& reason,
                          const std::string& by) {
  record::Lease& lease = *device.mutable_lease();
  if (lease.phase() == record::PHASE_FENCING) return;
  const bool was_revoking = lease.phase() == record::PHASE_REVOKING;
  if (was_revoking && grace_ms >= lease.grace_ms()) return;  // a grace is only ever shortened
  lease.set_end_reason(reason);
  lease.set_ended_by(by);
  if (grace_ms == 0) return begin_fencing(device, reason, by);
  lease.set_phase(record::PHASE_REVOKING);
  lease.set_grace_ms(grace_ms);
  event("revoking", device, by, reason);
  touch(device);
}

void Step::extend(const command::Extend& c) {
  record::Device* device = find(c.device());
  if (device == nullptr) return refuse(command::CODE_NOT_FOUND, "there is no device " + c.device());
  if (!device->has_lease() || (c.token() != 0 && !has_lease(*device, c.token()))) {
    return refuse(command::CODE_NOT_FOUND, c.device() + " has no such lease to extend");
  }
  record::Lease& lease = *device->mutable_lease();
  if (lease.phase() != record::PHASE_GRANTED)
    return refuse(command::CODE_REFUSED, "the lease of " + c.device() + " is being revoked already");
  const std::uint64_t most_s = device->policy().until_max_s();
  if (most_s != 0 && (c.duration_s() == 0 || c.duration_s() > most_s)) {
    return refuse(command::CODE_REFUSED,
                  "the policy of " + c.device() + " allows at most " + std::to_string(most_s) + " s from now");
  }
  lease.set_until_unix_s(c.duration_s() == 0 ? 0 : context_.now_unix_s + c.duration_s());
  decision_.reply.set_token(lease.token());
  event("extended", *device, c.principal(),
        c.duration_s() == 0 ? "no end" : std::to_string(c.duration_s()) + " s from now");
  touch(*device);
}

void Step::grace_over(const command::GraceOver& c) {
  record::Device* device = find(c.device());
  if (device == nullptr || !has_lease(*device, c.token()) || device->lease().phase() != record::PHASE_REVOKING) return;
  begin_fencing(*device, device->lease().end_reason(), device->lease().ended_by());
}

void Step::until_over(const command::UntilOver& c) {
  record::Device* device = find(c.device());
  if (device == nullptr || !has_lease(*device, c.token())) return;
  const std::uint64_t until_s = device->lease().until_unix_s();
  if (until_s == 0 || context_.now_unix_s < until_s) return;  // it was extended meanwhile
  begin_fencing(*device, "the time that was asked for is over", "until");
}

void Step::confirm_fenced(const command::ConfirmFenced& c) {
  record::Device* device = find(c.device());
  if (device == nullptr) return refuse(command::CODE_NOT_FOUND, "there is no device " + c.device());
  if (c.token() > device->last_token()) {
    return refuse(command::CODE_REFUSED,
                  c.device() + ": token " + std::to_string(c.token()) + " was never granted here");
  }
  // A confirmation of a token that has ended already is a repeat.
  if (!has_lease(*device, c.token())) return;
  if (!MUTANT(confirm_any_instance) && !same_instance(device->lease().instance(), c.instance())) {
    return refuse(command::CODE_REFUSED, c.device() + ": the confirmation is about another instance than the lease");
  }
  // Also without an order of ours: the home has raised its floor, so the token is dead there for good.
  if (device->lease().end_reason().empty()) device->mutable_lease()->set_end_reason(c.how());
  end_lease(*device, "fenced", c.how());
  grant_waiting();
}

}  // namespace usblease::lease
