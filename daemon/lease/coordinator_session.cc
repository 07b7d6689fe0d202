#include "daemon/lease/coordinator_session.h"

#include <algorithm>

#include "common/mutant.h"
#include "daemon/lease/keys.h"

namespace usblease::lease {

void RenewalGate::arrive(std::uint64_t id) {
  if (MUTANT(renewal_by_an_earlier_read) && reading_) return covered_.push_back(id);
  waiting_.push_back(id);
}

std::optional<std::uint64_t> RenewalGate::next_read_ns() const {
  if (reading_ || waiting_.empty()) return std::nullopt;
  return last_began_ns_ == 0 ? 0 : last_began_ns_ + kReadGapNs;
}

void RenewalGate::read_began(std::uint64_t now_ns) {
  reading_ = true;
  last_began_ns_ = now_ns;
  covered_.swap(waiting_);
}

std::vector<std::uint64_t> RenewalGate::read_ended() {
  reading_ = false;
  return std::exchange(covered_, {});
}

void Fences::observe(const State& state, const std::string& key) {
  const std::string prefix = kDevicePrefix;
  if (!key.starts_with(prefix)) return;
  const auto found = state.devices.find(key.substr(prefix.size()));
  observe_device(key.substr(prefix.size()), found == state.devices.end() ? nullptr : &found->second);
}

void Fences::observe_all(const State& state) {
  devices_.clear();
  homes_.clear();
  for (const auto& [name, device] : state.devices) observe_device(name, &device);
}

void Fences::observe_device(const std::string& name, const record::Device* device) {
  if (auto before = homes_.extract(name); !before.empty()) {
    const auto home = devices_.find(before.mapped());
    home->second.erase(name);
    if (home->second.empty()) devices_.erase(home);
  }
  if (device == nullptr || !device->has_lease() || device->lease().phase() != record::PHASE_FENCING) return;
  const std::string& home = device->lease().instance().host_id();
  homes_[name] = home;
  devices_[home].insert(name);
}

const std::set<std::string>& Fences::at(const std::string& home) const {
  static const std::set<std::string> kNone;
  const auto found = devices_.find(home);
  return found == devices_.end() ? kNone : found->second;
}

void fill_answer(const State& state, const Fences& fences, const peer::Renewal& renewal, peer::RenewalAnswer& answer) {
  const auto homed_here = [&](const record::Lease& lease) { return lease.instance().host_id() == renewal.host_id(); };
  const auto of_this_boot = [&](const record::Lease& lease) {
    return homed_here(lease) && lease.instance().boot_id() == renewal.boot_id();
  };
  std::vector<std::pair<std::string, std::uint64_t>> fence;
  for (const auto& armed : renewal.armed()) {
    const auto found = state.devices.find(armed.device());
    const record::Lease* lease =
        found != state.devices.end() && found->second.has_lease() ? &found->second.lease() : nullptr;
    const bool live = lease != nullptr && lease->token() == armed.token() && lease->phase() != record::PHASE_FENCING &&
                      of_this_boot(*lease);
    if (live || MUTANT(renew_what_is_gone)) {
      *answer.add_renewed() = armed;
    } else {
      fence.emplace_back(armed.device(), armed.token());
    }
  }
  // Also one of an earlier boot: a stream to an endpoint outlives its home, and only the home can look whether it
  // ended.
  for (const std::string& name : fences.at(renewal.host_id())) {
    const auto found = state.devices.find(name);
    if (found == state.devices.end() || !found->second.has_lease()) continue;
    const record::Lease& lease = found->second.lease();
    if (lease.phase() == record::PHASE_FENCING && homed_here(lease)) fence.emplace_back(name, lease.token());
  }
  std::sort(fence.begin(), fence.end());
  fence.erase(std::unique(fence.begin(), fence.end()), fence.end());
  for (const auto& [device, token] : fence) {
    peer::Armed& out = *answer.add_fence();
    out.set_device(device);
    out.set_token(token);
  }
}

void CoordinatorSessions::answered(const std::string& host_id, const std::string& boot_id, std::uint64_t now_ns) {
  last_[host_id] = Last{boot_id, now_ns};
}

std::optional<std::uint64_t> CoordinatorSessions::last_answered_ns(const record::Host& host) const {
  const auto found = last_.find(host.id());
  if (found == last_.end() || found->second.boot_id != host.boot_id()) return std::nullopt;
  return found->second.answered_ns;
}

std::uint64_t CoordinatorSessions::gone_at_ns(const record::Host& host) const {
  return gone_ns(timing_, last_answered_ns(host).value_or(elected_ns_));
}

std::vector<CoordinatorSessions::Gone> CoordinatorSessions::gone(const State& state, std::uint64_t now_ns) const {
  std::vector<Gone> out;
  for (const auto& [id, host] : state.hosts) {
    if (!host.gone() && now_ns >= gone_at_ns(host)) out.push_back({id, host.boot_id()});
  }
  return out;
}

std::optional<std::uint64_t> CoordinatorSessions::next_ns(const State& state) const {
  std::optional<std::uint64_t> next;
  for (const auto& [id, host] : state.hosts) {
    if (!host.gone()) next = std::min(next.value_or(UINT64_MAX), gone_at_ns(host));
  }
  return next;
}

}  // namespace usblease::lease
