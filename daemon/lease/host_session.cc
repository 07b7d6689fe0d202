#include "daemon/lease/host_session.h"

#include <algorithm>

#include "common/mutant.h"

namespace usblease::lease {

HostSession::HostSession(Timing timing, std::string host_id, std::string boot_id, std::string machine_uuid)
    : timing_(timing),
      host_id_(std::move(host_id)),
      boot_id_(std::move(boot_id)),
      machine_uuid_(std::move(machine_uuid)) {}

void HostSession::arm(const DeviceToken& lease, std::uint32_t limit_ms) {
  Armed& armed = armed_[lease];
  armed.limit_ms = std::max(limit_ms, timing_.ttl_ms);
  armed.deadline_ns = std::max(armed.deadline_ns, deadline_for_new(limit_ms));
}

void HostSession::disarm(const DeviceToken& lease) { armed_.erase(lease); }

peer::Renewal HostSession::renew(std::uint64_t now_ns) {
  peer::Renewal renewal;
  renewal.set_host_id(host_id_);
  renewal.set_boot_id(boot_id_);
  renewal.set_machine_uuid(machine_uuid_);
  renewal.set_seq(next_seq_);
  sent_ns_[next_seq_++] = now_ns;
  if (sent_ns_.size() > kInFlightMax) sent_ns_.erase(sent_ns_.begin());
  for (const auto& [lease, armed] : armed_) {
    peer::Armed& out = *renewal.add_armed();
    out.set_device(lease.first);
    out.set_token(lease.second);
  }
  return renewal;
}

HostSession::Orders HostSession::answer(const peer::RenewalAnswer& answer) {
  Orders orders;
  for (const auto& fence : answer.fence()) orders.fence.emplace_back(fence.device(), fence.token());
  const auto sent = sent_ns_.find(answer.seq());
  if (answer.status().code() != command::CODE_OK || sent == sent_ns_.end()) return orders;
  const std::uint64_t sent_ns = MUTANT(deadline_from_newest_renewal) ? sent_ns_.rbegin()->second : sent->second;
  sent_ns_.erase(sent_ns_.begin(), std::next(sent));
  answered_sent_ns_ = std::max(answered_sent_ns_, sent_ns);
  for (const auto& renewed : answer.renewed()) {
    const auto found = armed_.find({renewed.device(), renewed.token()});
    if (found == armed_.end()) continue;
    const std::uint64_t later_ns = deadline_ns(timing_, sent_ns, found->second.limit_ms);
    if (later_ns <= found->second.deadline_ns) continue;
    found->second.deadline_ns = later_ns;
    orders.deadlines.emplace_back(found->first, later_ns);
  }
  return orders;
}

std::uint64_t HostSession::deadline(const DeviceToken& lease) const {
  const auto found = armed_.find(lease);
  return found == armed_.end() ? 0 : found->second.deadline_ns;
}

std::uint64_t HostSession::deadline_for_new(std::uint32_t limit_ms) const {
  if (answered_sent_ns_ == 0) return 0;
  return deadline_ns(timing_, answered_sent_ns_, std::max(limit_ms, timing_.ttl_ms));
}

}  // namespace usblease::lease
