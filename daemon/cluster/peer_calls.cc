#include "daemon/cluster/peer_calls.h"

#include <utility>

#include "common/log.h"

namespace usblease::cluster {

void PeerCalls::up(const std::string& host_id) { open_.try_emplace(host_id); }

void PeerCalls::down(const std::string& host_id) {
  auto lost = open_.extract(host_id);
  if (lost.empty()) return;
  for (auto& [id, answered] : lost.mapped().unanswered) answered(nullptr);
}

void PeerCalls::answer(const std::string& host_id, const std::string& payload) {
  const auto open = open_.find(host_id);
  if (open == open_.end()) return;
  peer::PeerAnswer answer;
  if (!answer.ParseFromString(payload)) {
    if (!std::exchange(open->second.complained, true))
      log::warning("another host sent what is no answer of this version of usblease", {{"HOST", host_id}});
    return;
  }
  if (answer.id() == 0) return pushed_(host_id, answer);
  const auto found = open->second.unanswered.find(answer.id());
  if (found == open->second.unanswered.end()) return;  // forgotten meanwhile
  if (answer.more()) {
    const Answered answered = found->second;  // it may forget itself
    return answered(&answer);
  }
  const Answered answered = std::move(found->second);
  open->second.unanswered.erase(found);
  answered(&answer);
}

PeerCalls::CallId PeerCalls::ask(const std::string& host_id, peer::PeerRequest request, Answered answered) {
  const auto open = open_.find(host_id);
  if (open == open_.end() || open->second.unanswered.size() >= kCallsPerHostMax) return {};
  CallId call{host_id, next_id_++};
  request.set_id(call.id);
  if (!transport_.ask(host_id, request.SerializeAsString())) return {};
  open->second.unanswered.emplace(call.id, std::move(answered));
  return call;
}

bool PeerCalls::tell(const std::string& host_id, peer::PeerRequest request) {
  if (!connected(host_id)) return false;
  request.set_id(next_id_++);
  return transport_.ask(host_id, request.SerializeAsString());
}

void PeerCalls::forget(const CallId& call) {
  const auto open = open_.find(call.host_id);
  if (open != open_.end()) open->second.unanswered.erase(call.id);
}

std::set<std::string> PeerCalls::hosts() const {
  std::set<std::string> hosts;
  for (const auto& [host_id, open] : open_) hosts.insert(host_id);
  return hosts;
}

}  // namespace usblease::cluster
