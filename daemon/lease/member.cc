// Who belongs to the cluster: founding it, join tokens, removal, drains, and the restore of a backup.
#include <algorithm>

#include "daemon/lease/fields.h"
#include "daemon/lease/step.h"

namespace usblease::lease {
namespace {

bool concerns(const record::Device& device, const std::string& host_id) {
  return device.has_lease() &&
         (device.lease().start().host_id() == host_id || device.lease().instance().host_id() == host_id);
}

record::Member* find_member(State& state, const std::string& host_id) {
  const auto found = state.members.find(host_id);
  return found == state.members.end() ? nullptr : &found->second;
}

bool belongs(const record::Member& member) { return member.standing() != record::STANDING_REMOVED; }

std::string no_member(const std::string& host_id) {
  return host_id + " is not a host of this cluster; `usblease cluster status` shows them";
}

constexpr const char* kClusterOfOne = "this is a cluster of one; `usblease cluster init` makes it a cluster of several";
constexpr const char* kRestoring =
    "a backup is being restored; nothing is granted until it is done: run `usblease cluster restore` again if it was "
    "interrupted";

}  // namespace

std::vector<std::string> leased_devices_at(const State& state, const std::string& host_id) {
  std::vector<std::string> out;
  for (const auto& [name, device] : state.devices) {
    if (concerns(device, host_id)) out.push_back(name);
  }
  return out;
}

bool takes_no_more(const State& state, const std::string& host_id) {
  const auto host = state.hosts.find(host_id);
  if (host != state.hosts.end() && host->second.draining()) return true;
  if (state.members.empty()) return false;
  const auto member = state.members.find(host_id);
  return member == state.members.end() || member->second.standing() != record::STANDING_JOINED;
}

void Step::member_event(const std::string& kind, const std::string& host_id, const std::string& principal,
                        const std::string& text) {
  record::Event e;
  e.set_kind(kind);
  e.set_host(host_id);
  e.set_principal(principal);
  e.set_text(text);
  event(std::move(e));
}

// True: the cluster has members, and this host is none of them (any more).
bool Step::refuse_stranger(const std::string& host_id) {
  if (state_.members.empty()) return false;
  const record::Member* member = find_member(state_, host_id);
  if (member != nullptr && belongs(*member)) return false;
  refuse(command::CODE_REFUSED, member == nullptr
                                    ? no_member(host_id)
                                    : "host " + host_id + " was removed from this cluster; `usblease cluster add " +
                                          host_id + "` on another host makes a token with which it can join again");
  return true;
}

void Step::found_cluster(const command::FoundCluster& c) {
  const std::string& id = c.member().host_id();
  if (const record::Member* known = find_member(state_, id);
      known != nullptr && known->key_sha256() == c.member().key_sha256())
    return;  // a repeat
  if (!state_.members.empty()) return refuse(command::CODE_REFUSED, "this cluster has been founded already");
  record::Member& member = state_.members[id];
  member = c.member();
  member.set_standing(record::STANDING_JOINED);
  member.set_joined_unix_s(context_.now_unix_s);
  touch(member);
  member_event("founded", id, c.principal(), "the first host of the cluster");
  // A cluster of one may remember hosts that its machine was called before.
  for (const auto& [other, host] : state_.hosts) {
    if (other != id) drop_requests_of_host(other, "", "the guest's host is not in the cluster");
  }
  grant_waiting();
}

void Step::add_host(const command::AddHost& c) {
  const std::string& id = c.token().host_id();
  if (state_.members.empty()) return refuse(command::CODE_REFUSED, kClusterOfOne);
  if (const record::Member* known = find_member(state_, id); known != nullptr && belongs(*known))
    return refuse(command::CODE_REFUSED,
                  id + " is a host of this cluster already; `usblease cluster remove " + id + "` first");
  const std::uint64_t now_s = context_.now_unix_s;
  if (c.token().expires_unix_s() <= now_s || c.token().expires_unix_s() > now_s + kJoinTokenMaxS)
    return refuse(command::CODE_BAD_REQUEST, "a join token is good for one second to 30 days");
  // Those that are over, and an earlier one of the same host: whoever lost a token makes a new one.
  for (auto at = state_.tokens.begin(); at != state_.tokens.end();) {
    const bool over = at->second.expires_unix_s() <= now_s || at->second.host_id() == id;
    if (over) touch(at->second);
    at = over ? state_.tokens.erase(at) : std::next(at);
  }
  // A used one is kept for a joiner that repeats after a lost answer, while there is room.
  const auto used = std::find_if(state_.tokens.begin(), state_.tokens.end(),
                                 [](const auto& token) { return !token.second.redeemed_by().empty(); });
  if (state_.tokens.size() >= kJoinTokensMax && used != state_.tokens.end()) {
    touch(used->second);
    state_.tokens.erase(used);
  }
  if (state_.tokens.size() >= kJoinTokensMax)
    return refuse(command::CODE_UNAVAILABLE,
                  std::to_string(kJoinTokensMax) + " join tokens are open; wait until some are used or expire");
  record::JoinToken& token = state_.tokens[c.token().id()];
  token = c.token();
  token.clear_redeemed_by();
  touch(token);
  member_event("invited", id, c.principal(), "join token " + token.id());
}

void Step::join(const command::Join& c) {
  const auto found = state_.tokens.find(c.token_id());
  // One answer for what nobody may probe: no such token, or not its secret.
  if (found == state_.tokens.end() || found->second.secret_sha256() != c.secret_sha256()) {
    return refuse(command::CODE_REFUSED,
                  "this join token is not known here: it is of another cluster, was replaced, or has expired; make "
                  "another with `usblease cluster add`");
  }
  record::JoinToken& token = found->second;
  const std::string& id = c.member().host_id();
  if (token.host_id() != id)
    return refuse(command::CODE_REFUSED, "this join token is for host " + token.host_id() + ", not for " + id +
                                             "; set host_id= there, or make a token for " + id);
  if (token.expires_unix_s() <= context_.now_unix_s)
    return refuse(command::CODE_REFUSED,
                  "this join token has expired; make another with `usblease cluster add " + id + "`");
  if (!token.redeemed_by().empty()) {
    if (token.redeemed_by() == c.member().key_sha256()) return;  // a repeat after a lost answer
    return refuse(command::CODE_REFUSED,
                  "this join token has been used already; make another with `usblease cluster "
                  "remove` and `usblease cluster add` if it was not you");
  }
  if (!state_.members.contains(id) && state_.members.size() >= kMembersMax)
    return refuse(command::CODE_REFUSED, "the cluster has " + std::to_string(kMembersMax) + " hosts already");
  token.set_redeemed_by(c.member().key_sha256());
  touch(token);
  record::Member& member = state_.members[id];
  const auto revoked = member.revoked();
  member = c.member();
  member.set_standing(record::STANDING_JOINED);
  member.set_joined_unix_s(context_.now_unix_s);
  member.clear_store();
  member.clear_certificates();
  *member.mutable_revoked() = revoked;
  touch(member);
  member_event("joined", id, "", "with join token " + token.id());
  grant_waiting();
}

void Step::update_member(const command::UpdateMember& c) {
  record::Member* member = find_member(state_, c.host_id());
  if (member == nullptr || !belongs(*member)) return refuse(command::CODE_NOT_FOUND, no_member(c.host_id()));
  const std::string before = member->SerializeAsString();
  if (!c.addresses().empty()) *member->mutable_addresses() = c.addresses();
  if (c.has_store()) {
    const auto running = std::count_if(state_.members.begin(), state_.members.end(), [&](const auto& entry) {
      return entry.first != c.host_id() && entry.second.store().role() != record::STORE_ROLE_NONE;
    });
    const bool one_more = c.store().role() != record::STORE_ROLE_NONE;
    if (one_more && running >= static_cast<std::ptrdiff_t>(kStoreMembersMax))
      return refuse(command::CODE_REFUSED, "the cluster has five store members already");
    if (!one_more && running == 0)
      return refuse(command::CODE_REFUSED, "this is the last store member; another host must have one first");
    *member->mutable_store() = c.store();
  }
  if (member->SerializeAsString() == before) return;
  touch(*member);
  if (!c.has_store()) return;
  const bool voter = c.store().role() == record::STORE_ROLE_VOTER;
  const bool learner = c.store().role() == record::STORE_ROLE_LEARNER;
  member_event("store-member", c.host_id(), "", voter ? "votes" : learner ? "copies the store" : "runs no more");
}

void Step::remove_host(const command::RemoveHost& c) {
  record::Member* member = find_member(state_, c.host_id());
  if (member == nullptr) return refuse(command::CODE_NOT_FOUND, no_member(c.host_id()));
  if (!belongs(*member)) return;  // a repeat
  if (member->store().role() != record::STORE_ROLE_NONE)
    return refuse(command::CODE_REFUSED, c.host_id() + " still runs a store member; that must go first");
  const auto others = std::count_if(state_.members.begin(), state_.members.end(), [&](const auto& entry) {
    return entry.first != c.host_id() && entry.second.standing() == record::STANDING_JOINED;
  });
  if (others == 0) return refuse(command::CODE_REFUSED, "the last host of a cluster cannot be removed from it");
  if (member->standing() == record::STANDING_JOINED) {
    member->set_standing(record::STANDING_LEAVING);
    touch(*member);
    member_event("leaving", c.host_id(), c.principal(), "");
    drop_requests_of_host(c.host_id(), "", "the guest's host is being removed from the cluster");
  }
  for (auto& [name, device] : state_.devices) {
    if (concerns(device, c.host_id())) begin_fencing(device, "its host is being removed", c.principal());
  }
  look_for_leavers_ = true;
  decision_.reply.set_leases_left(static_cast<std::uint32_t>(leased_devices_at(state_, c.host_id()).size()));
  grant_waiting();
}

// A host that is to be removed goes when no lease needs its word any more.
void Step::finish_leaving() {
  bool gone = false;
  for (auto& [id, member] : state_.members) {
    if (member.standing() != record::STANDING_LEAVING || !leased_devices_at(state_, id).empty()) continue;
    gone = true;
    member.set_standing(record::STANDING_REMOVED);
    member.clear_addresses();
    member.set_rotate(false);
    revoke_certificates(member, 0, member.certificates_size());
    touch(member);
    if (const auto host = state_.hosts.find(id); host != state_.hosts.end()) {
      host->second.set_gone(true);
      host->second.set_draining(false);
      touch(host->second);
    }
    for (auto& [name, device] : state_.devices) {
      auto* homes = device.mutable_homes();
      for (int i = homes->size() - 1; i >= 0; --i) {
        if (homes->Get(i).instance().host_id() != id) continue;
        homes->DeleteSubrange(i, 1);
        touch(device);
      }
    }
    member_event("removed", id, "", "");
  }
  if (!gone) return;
  raise_versions();
  grant_waiting();
}

void Step::rotate_certificates(const command::RotateCertificates& c) {
  if (state_.members.empty()) return refuse(command::CODE_REFUSED, kClusterOfOne);
  std::uint32_t hosts = 0;
  for (auto& [id, member] : state_.members) {
    if (member.standing() != record::STANDING_JOINED) continue;
    ++hosts;
    if (member.rotate()) continue;
    member.set_rotate(true);
    touch(member);
  }
  decision_.reply.set_hosts(hosts);
  member_event("rotating", "", c.principal(), std::to_string(hosts) + " hosts");
}

void Step::note_certificate(const command::NoteCertificate& c) {
  record::Member* member = find_member(state_, c.host_id());
  if (member == nullptr || !belongs(*member)) return refuse(command::CODE_NOT_FOUND, no_member(c.host_id()));
  auto& certificates = *member->mutable_certificates();
  const auto known = std::find_if(certificates.begin(), certificates.end(),
                                  [&](const auto& each) { return each.serial() == c.certificate().serial(); });
  if (c.in_use()) {
    if (known == certificates.end())
      return refuse(command::CODE_NOT_FOUND, "no such certificate was made for " + c.host_id());
    const int older = static_cast<int>(known - certificates.begin());
    if (older == 0) return;  // a repeat
    revoke_certificates(*member, 0, older);
    touch(*member);
    return member_event("rotated", c.host_id(), "", "certificate " + c.certificate().serial());
  }
  if (known != certificates.end()) return;
  // One that was made meanwhile and is not in use never will be: its host asks again.
  if (certificates.size() > 1) revoke_certificates(*member, 1, certificates.size() - 1);
  *member->add_certificates() = c.certificate();
  member->set_rotate(false);
  touch(*member);
}

// From then on the list of revocations names them, until they have ended by themselves.
void Step::revoke_certificates(record::Member& member, int from, int count) {
  auto& revoked = *member.mutable_revoked();
  for (int i = from; i < from + count; ++i) *revoked.Add() = member.certificates(i);
  member.mutable_certificates()->DeleteSubrange(from, count);
  const auto ended = [&](const auto& each) { return each.end_unix_s() < context_.now_unix_s; };
  revoked.erase(std::remove_if(revoked.begin(), revoked.end(), ended), revoked.end());
  while (revoked.size() > static_cast<int>(kRevokedMax)) {
    revoked.erase(std::min_element(revoked.begin(), revoked.end(),
                                   [](const auto& a, const auto& b) { return a.end_unix_s() < b.end_unix_s(); }));
  }
}

void Step::drain_host(const command::DrainHost& c) {
  const auto found = state_.hosts.find(c.host_id());
  if (found == state_.hosts.end())
    return refuse(command::CODE_NOT_FOUND,
                  "no host " + c.host_id() + " has registered; `usblease cluster status` shows them");
  record::Host& host = found->second;
  if (host.draining() == c.undo()) {
    host.set_draining(!c.undo());
    touch(host);
    member_event(c.undo() ? "undrained" : "draining", c.host_id(), c.principal(), "");
  }
  if (!c.undo()) {
    const std::string why = "host " + c.host_id() + " is being drained";
    drop_requests_of_host(c.host_id(), "", why);
    for (const std::string& name : leased_devices_at(state_, c.host_id()))
      begin_revoking(state_.devices.at(name), c.grace_ms(), why, c.principal());
  }
  decision_.reply.set_leases_left(static_cast<std::uint32_t>(leased_devices_at(state_, c.host_id()).size()));
  grant_waiting();
}

// A backup is old: what it says of leases is only what may still be armed somewhere, so each of them is fenced. Its
// tokens and barred boots can only ever forbid more.
void Step::restore(const command::Restore& c) {
  if (c.begin()) {
    const auto live = std::find_if(state_.devices.begin(), state_.devices.end(), [](const auto& entry) {
      return entry.second.has_lease() && entry.second.lease().phase() != record::PHASE_FENCING;
    });
    if (live != state_.devices.end()) {
      return refuse(command::CODE_REFUSED, live->first +
                                               " is leased; a backup is restored only into a cluster that leases "
                                               "nothing: `usblease host drain` its hosts first");
    }
  } else if (state_.meta.behind() != kRestoring) {
    return refuse(command::CODE_REFUSED, "no restore has begun; run `usblease cluster restore` again");
  }
  if (c.end()) {
    command::NewEpoch epoch;
    epoch.set_epoch(c.epoch());
    epoch.set_principal(c.principal());
    return new_epoch(epoch);
  }
  const auto new_hosts = std::count_if(c.hosts().begin(), c.hosts().end(),
                                       [&](const auto& host) { return !state_.hosts.contains(host.id()); });
  const auto new_devices = std::count_if(c.devices().begin(), c.devices().end(),
                                         [&](const auto& device) { return !state_.devices.contains(device.name()); });
  if (state_.hosts.size() + static_cast<std::size_t>(new_hosts) > kHostsMax ||
      state_.devices.size() + static_cast<std::size_t>(new_devices) > kDevicesMax) {
    return refuse(command::CODE_REFUSED, "backup and cluster together have more than " + std::to_string(kHostsMax) +
                                             " hosts or " + std::to_string(kDevicesMax) + " devices");
  }
  if (c.begin()) {
    state_.meta.set_behind(kRestoring);
    touch_meta();
    member_event("restoring", "", c.principal(), "");
  }
  for (const record::Host& host : c.hosts()) restore_host(host);
  for (const record::Device& device : c.devices()) restore_device(device);
}

void Step::restore_host(const record::Host& backup) {
  const auto known = state_.hosts.find(backup.id());
  if (known == state_.hosts.end()) {
    record::Host& host = state_.hosts[backup.id()];
    host = backup;
    host.set_gone(true);  // until it registers
    host.set_draining(false);
    return touch(host);
  }
  record::Host& host = known->second;
  for (const std::string& boot_id : backup.barred_boot_ids()) {
    if (is_barred(host, boot_id) || host.barred_boot_ids_size() >= static_cast<int>(kBarredBootIdsMax)) continue;
    host.add_barred_boot_ids(boot_id);
    touch(host);
  }
}

void Step::restore_device(const record::Device& backup) {
  record::Device* device = find(backup.name());
  if (device == nullptr) {
    device = &state_.devices[backup.name()];
    device->set_name(backup.name());
    touch(*device);
  }
  if (backup.last_token() > device->last_token()) {
    device->set_last_token(backup.last_token());
    touch(*device);
  }
  if (!backup.has_lease()) return;
  if (device->has_lease()) {
    if (device->lease().token() >= backup.lease().token()) return;
    end_lease(*device, "superseded", "the backup has a greater token");  // granted after the lesser one had ended
  }
  *device->mutable_lease() = backup.lease();
  device->mutable_lease()->set_phase(record::PHASE_GRANTED);
  begin_fencing(*device, "a backup was restored", "");
}

}  // namespace usblease::lease
