#include "daemon/lease/agenda.h"

#include <algorithm>

#include "daemon/lease/keys.h"

namespace usblease::lease {
namespace {

constexpr std::uint64_t kRetryNs = 1'000 * kNsPerMs;
// A wall clock may be set: never sleep longer than this towards an `until`.
constexpr std::uint64_t kUntilRecheckS = 60;

template <typename Map>
auto* value_in(Map& map, const std::string& name) {
  const auto found = map.find(name);
  return found == map.end() ? nullptr : &found->second;
}

}  // namespace

void Agenda::observe(const State& state, const std::string& key, std::uint64_t now_ns) {
  const std::string devices = kDevicePrefix;
  const std::string requests = kRequestPrefix;
  if (key.rfind(devices, 0) == 0) {
    const std::string name = key.substr(devices.size());
    observe_device(value_in(state.devices, name), name, now_ns);
  } else if (key.rfind(requests, 0) == 0) {
    const std::string id = key.substr(requests.size());
    observe_request(value_in(state.requests, id), id, now_ns);
  }
}

void Agenda::observe_all(const State& state, std::uint64_t now_ns) {
  std::erase_if(graces_, [&](const auto& grace) { return !state.devices.contains(grace.first); });
  std::erase_if(untils_, [&](const auto& until) { return !state.devices.contains(until.first); });
  std::erase_if(expiries_, [&](const auto& expiry) { return !state.devices.contains(expiry.first); });
  std::erase_if(waits_ns_, [&](const auto& wait) { return !state.requests.contains(wait.first); });
  for (const auto& [name, device] : state.devices) observe_device(&device, name, now_ns);
  for (const auto& [id, request] : state.requests) observe_request(&request, id, now_ns);
}

void Agenda::observe_device(const record::Device* device, const std::string& name, std::uint64_t now_ns) {
  const record::Lease* lease = device != nullptr && device->has_lease() ? &device->lease() : nullptr;
  if (is_lock(name)) observe_lock(lease, name, now_ns);
  if (lease == nullptr || lease->phase() != record::PHASE_REVOKING) {
    graces_.erase(name);
  } else {
    Grace& grace = graces_[name];
    if (grace.token != lease->token()) grace = Grace{lease->token(), 0, UINT64_MAX};
    // A shorter grace counts from when it was asked for, and never ends later than the longer one would have.
    if (grace.grace_ms != lease->grace_ms()) {
      grace.grace_ms = lease->grace_ms();
      grace.due_ns = std::min(grace.due_ns, now_ns + grace.grace_ms * kNsPerMs);
    }
  }
  if (lease == nullptr || lease->until_unix_s() == 0 || lease->phase() == record::PHASE_FENCING) {
    untils_.erase(name);
  } else {
    Until& until = untils_[name];
    if (until.token != lease->token() || until.unix_s != lease->until_unix_s())
      until = Until{lease->token(), lease->until_unix_s(), 0};
  }
}

void Agenda::observe_lock(const record::Lease* lease, const std::string& name, std::uint64_t now_ns) {
  if (lease == nullptr || lease->phase() != record::PHASE_FENCING) {
    expiries_.erase(name);
    return;
  }
  Expiry& expiry = expiries_[name];
  if (expiry.token == lease->token()) return;
  expiry = Expiry{lease->instance(), lease->token(), gone_ns(timing_, now_ns)};
}

void Agenda::observe_request(const record::Request* request, const std::string& id, std::uint64_t now_ns) {
  if (request == nullptr) {
    waits_ns_.erase(id);
  } else {
    waits_ns_.emplace(id, now_ns + request->wait_ms() * kNsPerMs);
  }
}

std::vector<command::Command> Agenda::due(std::uint64_t now_ns, std::uint64_t now_unix_s) {
  std::vector<command::Command> out;
  for (auto& [device, grace] : graces_) {
    if (now_ns < grace.due_ns) continue;
    grace.due_ns = now_ns + kRetryNs;
    command::GraceOver& c = *out.emplace_back().mutable_grace_over();
    c.set_device(device);
    c.set_token(grace.token);
  }
  for (auto& [name, expiry] : expiries_) {
    if (now_ns < expiry.due_ns) continue;
    expiry.due_ns = now_ns + kRetryNs;
    command::ConfirmFenced& c = *out.emplace_back().mutable_confirm_fenced();
    c.set_device(name);
    c.set_token(expiry.token);
    *c.mutable_instance() = expiry.instance;
    c.set_how("its time is over, and nothing renewed it");
  }
  for (auto& [device, until] : untils_) {
    if (now_unix_s < until.unix_s || now_ns < until.not_before_ns) continue;
    until.not_before_ns = now_ns + kRetryNs;
    command::UntilOver& c = *out.emplace_back().mutable_until_over();
    c.set_device(device);
    c.set_token(until.token);
  }
  for (auto& [id, wait_over_ns] : waits_ns_) {
    if (now_ns < wait_over_ns) continue;
    wait_over_ns = now_ns + kRetryNs;
    command::CancelRequest& c = *out.emplace_back().mutable_cancel_request();
    c.set_request_id(id);
    c.set_code(command::CODE_TIMED_OUT);
    c.set_reason("the wait is over");
  }
  return out;
}

std::optional<std::uint64_t> Agenda::next_ns(std::uint64_t now_ns, std::uint64_t now_unix_s) const {
  std::uint64_t next = UINT64_MAX;
  for (const auto& [device, grace] : graces_) next = std::min(next, grace.due_ns);
  for (const auto& [name, expiry] : expiries_) next = std::min(next, expiry.due_ns);
  for (const auto& [id, wait_over_ns] : waits_ns_) next = std::min(next, wait_over_ns);
  for (const auto& [device, until] : untils_) {
    const std::uint64_t left_s = until.unix_s > now_unix_s ? std::min(until.unix_s - now_unix_s, kUntilRecheckS) : 0;
    next = std::min(next, std::max(now_ns + left_s * 1'000 * kNsPerMs, until.not_before_ns));
  }
  if (next == UINT64_MAX) return std::nullopt;
  return next;
}

}  // namespace usblease::lease
