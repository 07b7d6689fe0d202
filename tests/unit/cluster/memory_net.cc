#include "tests/unit/cluster/memory_net.h"

#include <utility>

#include "common/main_loop.h"

namespace usblease::cluster_test {

using cluster::AcceptedId;
using cluster::DownReason;

namespace {

std::pair<std::string, std::string> ordered(const std::string& a, const std::string& b) {
  return a < b ? std::pair(a, b) : std::pair(b, a);
}

}  // namespace

bool MemoryNet::reachable(const std::string& a, const std::string& b) const {
  return hosts_.contains(a) && hosts_.contains(b) && !cuts_.contains(ordered(a, b));
}

void MemoryNet::reset(const std::string& a, const std::string& b, DownReason reason) {
  if (const auto host = hosts_.find(a); host != hosts_.end()) host->second->end(b, reason);
  if (const auto host = hosts_.find(b); host != hosts_.end()) host->second->end(a, reason);
}

void MemoryNet::kill(const std::string& host_id) {
  for (const auto& [other, transport] : std::map(hosts_)) {
    if (other != host_id) transport->end(host_id, DownReason::kReset);
  }
}

void MemoryNet::cut(const std::string& a, const std::string& b) {
  cuts_.insert(ordered(a, b));
  reset(a, b, DownReason::kTimedOut);
}

void MemoryNet::heal(const std::string& a, const std::string& b) {
  cuts_.erase(ordered(a, b));
  connect_all();
}

void MemoryNet::connect_all() {
  for (const auto& [id, transport] : hosts_) {
    for (const std::string& peer : transport->peers_) {
      if (!transport->dialed_.contains(peer) && reachable(id, peer)) transport->connect(*hosts_.at(peer));
    }
  }
}

MemoryTransport::MemoryTransport(MemoryNet& net, std::string host_id, cluster::TransportEvents events)
    : net_(net), host_id_(std::move(host_id)), events_(std::move(events)) {
  net_.hosts_[host_id_] = this;
}

MemoryTransport::~MemoryTransport() {
  net_.hosts_.erase(host_id_);
  net_.kill(host_id_);
}

void MemoryTransport::set_peers(std::vector<cluster::Peer> peers) {
  peers_.clear();
  for (const cluster::Peer& peer : peers) peers_.insert(peer.host_id);
  post([this, alive = std::weak_ptr(alive_)] {
    if (!alive.expired()) net_.connect_all();
  });
}

void MemoryTransport::connect(MemoryTransport& to) {
  const AcceptedId id = net_.next_id_++;
  dialed_[to.host_id_] = id;
  to.accepted_[id] = host_id_;
  post([&to, alive = std::weak_ptr(to.alive_), id, from = host_id_] {
    if (!alive.expired() && to.accepted_.contains(id)) to.events_.accepted(id, from);
  });
  post([this, alive = std::weak_ptr(alive_), id, host = to.host_id_] {
    if (!alive.expired() && dialed_.contains(host) && dialed_.at(host) == id) events_.up(host);
  });
}

// Both ends of what connects this host and `host_id`.
void MemoryTransport::end(const std::string& host_id, DownReason reason) {
  dialed_.erase(host_id);
  if (peers_.contains(host_id))
    post([this, alive = std::weak_ptr(alive_), host_id, reason] {
      if (!alive.expired() && !dialed_.contains(host_id)) events_.down(host_id, reason, "the test ended it");
    });
  for (auto at = accepted_.begin(); at != accepted_.end();) {
    if (at->second != host_id) {
      ++at;
      continue;
    }
    post([this, alive = std::weak_ptr(alive_), id = at->first] {
      if (!alive.expired()) events_.gone(id);
    });
    at = accepted_.erase(at);
  }
}

bool MemoryTransport::ask(const std::string& host_id, std::string payload) {
  const auto found = dialed_.find(host_id);
  if (found == dialed_.end()) return false;
  MemoryTransport& to = *net_.hosts_.at(host_id);
  post([&to, alive = std::weak_ptr(to.alive_), id = found->second, payload = std::move(payload)] {
    if (!alive.expired() && to.accepted_.contains(id)) to.events_.request(id, payload);
  });
  return true;
}

bool MemoryTransport::answer(AcceptedId id, std::string payload) {
  const auto found = accepted_.find(id);
  if (found == accepted_.end()) return false;
  const std::string host_id = found->second;
  MemoryTransport& to = *net_.hosts_.at(host_id);
  if (to.lost_answers_ > 0) {
    if (--to.lost_answers_ == 0) {
      net_.reset(host_id_, host_id, DownReason::kTimedOut);
      post([this, alive = std::weak_ptr(alive_)] {
        if (!alive.expired()) net_.connect_all();
      });
    }
    return true;
  }
  post([&to, alive = std::weak_ptr(to.alive_), id, from = host_id_, payload = std::move(payload)] {
    if (alive.expired() || !to.dialed_.contains(from) || to.dialed_.at(from) != id) return;
    to.events_.answer(from, payload);
  });
  return true;
}

void MemoryTransport::drop(AcceptedId id) {
  const auto found = accepted_.find(id);
  if (found == accepted_.end()) return;
  ++dropped_;
  const std::string host_id = found->second;  // its entry goes
  net_.reset(host_id_, host_id, DownReason::kClosed);
}

}  // namespace usblease::cluster_test
