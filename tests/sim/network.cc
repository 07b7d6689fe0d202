#include "tests/sim/network.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace usblease::sim {

using cluster::DownReason;

namespace {

constexpr Ns kResendAfter = 200 * kMs;
constexpr Ns kKeepAlive = kSecond;

}  // namespace

// --- Connections -----------------------------------------------------------------------------------

bool Network::passes(const std::string& from, const std::string& to) const {
  const auto there = listening_.find(to);
  const auto here = listening_.find(from);
  const bool frozen = (there != listening_.end() && there->second->process_.machine->frozen) ||
                      (here != listening_.end() && here->second->process_.machine->frozen);
  return !frozen && !cut.contains({from, to});
}

Ns Network::delay() {
  Ns delay = kernel_.chance().between(kMs / 20, faults.delay_max);
  if (kernel_.chance().permille(faults.slow_permille)) delay += kernel_.chance().below(faults.slow_max);
  if (kernel_.chance().permille(faults.lost_permille)) delay += kResendAfter;
  return delay;
}

void Network::dial(SimTransport& from, const std::string& to) {
  const auto alive = std::weak_ptr(from.self_);
  const auto fail = [this, alive, to](Ns after, DownReason reason) {
    const auto dialer = alive.lock();
    if (!dialer) return;
    kernel_.after(after, &(*dialer)->process_, [alive, to, reason] {
      const auto transport = alive.lock();
      if (!transport || !(*transport)->peers_.contains(to)) return;
      (*transport)->dial_later(to);
      (*transport)->events_.down(to, reason, "simulated");
    });
  };
  kernel_.after(delay(), nullptr, [this, alive, to, fail] {
    const auto dialer = alive.lock();
    if (!dialer || !(*dialer)->peers_.contains(to) || (*dialer)->dialed_.contains(to)) return;
    const std::string& host = (*dialer)->host_id_;
    if (!passes(host, to) || !passes(to, host)) return fail(3 * kSecond, DownReason::kTimedOut);
    const auto there = listening_.find(to);
    if (there == listening_.end()) return fail(delay(), powered(to) ? DownReason::kRefused : DownReason::kTimedOut);
    if ((*dialer)->forbidden_.contains(to) || there->second->forbidden_.contains(host))
      return fail(delay(), DownReason::kForbidden);
    auto link = std::make_shared<Connection>(Connection{host, to, *dialer, there->second, next_id_++});
    link->passed_at = kernel_.now();
    // It replaces an earlier one of that host.
    for (const auto& [id, old] : std::map(there->second->accepted_)) {
      if (old->from == host) tell_acceptor(old);
    }
    there->second->accepted_[link->id] = link;
    (*dialer)->dialed_[to] = link;
    kernel_.after(0, &there->second->process_, [link] {
      if (link->acceptor != nullptr) link->acceptor->events_.accepted(link->id, link->from);
    });
    // What the acceptor says comes behind the end of the handshake.
    Ns& up_at = link->ways[1].not_before;
    up_at = kernel_.now() + delay();
    kernel_.at(up_at, &(*dialer)->process_, [link] {
      if (link->dialer != nullptr) link->dialer->events_.up(link->to);
    });
    kernel_.after(kKeepAlive, nullptr, [this, link] { keep_alive(link); });
  });
}

void Network::carry(const Link& link, bool to_acceptor, std::string payload) {
  if (kernel_.chance().permille(faults.reset_permille)) return break_off(link, DownReason::kReset);
  Connection::Way& way = link->ways[to_acceptor ? 0 : 1];
  way.not_before = std::max(way.not_before, kernel_.now() + delay());
  kernel_.at(way.not_before, nullptr, [this, link, to_acceptor, payload = std::move(payload)] {
    auto& held = link->ways[to_acceptor ? 0 : 1].held;
    held.push_back(payload);
    if (held.size() == 1) flush(link, to_acceptor, kernel_.now());
  });
}

void Network::flush(const Link& link, bool to_acceptor, Ns since) {
  auto& held = link->ways[to_acceptor ? 0 : 1].held;
  SimTransport* const target = to_acceptor ? link->acceptor : link->dialer;
  if (target == nullptr) return held.clear();
  if (!(to_acceptor ? passes(link->from, link->to) : passes(link->to, link->from))) {
    if (kernel_.now() > since + 2 * kSilentMax) return break_off(link, DownReason::kTimedOut);
    kernel_.after(kResendAfter, nullptr, [this, link, to_acceptor, since] { flush(link, to_acceptor, since); });
    return;
  }
  link->passed_at = kernel_.now();
  for (const std::string& payload : std::exchange(held, {})) {
    kernel_.after(0, &target->process_, [link, to_acceptor, payload] {
      SimTransport* const still = to_acceptor ? link->acceptor : link->dialer;
      if (still == nullptr) return;
      if (to_acceptor) {
        still->events_.request(link->id, payload);
      } else {
        still->events_.answer(link->to, payload);
      }
    });
  }
}

// Both ends ask the other's kernel; whoever gets no answer for long gives up.
void Network::keep_alive(const Link& link) {
  if (link->dialer == nullptr && link->acceptor == nullptr) return;
  if (passes(link->from, link->to) && passes(link->to, link->from)) {
    link->passed_at = kernel_.now();
    if (link->acceptor == nullptr) return tell_dialer(link, DownReason::kReset);
    if (link->dialer == nullptr) return tell_acceptor(link);
  } else if (kernel_.now() > link->passed_at + kSilentMax) {
    return break_off(link, DownReason::kTimedOut);
  }
  kernel_.after(kKeepAlive, nullptr, [this, link] { keep_alive(link); });
}

void Network::break_off(const Link& link, DownReason reason) {
  tell_dialer(link, reason);
  tell_acceptor(link);
}

void Network::tell_dialer(const Link& link, DownReason reason) {
  SimTransport* const dialer = std::exchange(link->dialer, nullptr);
  if (dialer == nullptr) return;
  const auto at = dialer->dialed_.find(link->to);
  if (at != dialer->dialed_.end() && at->second == link) dialer->dialed_.erase(at);
  kernel_.after(0, &dialer->process_, [alive = std::weak_ptr(dialer->self_), to = link->to, reason] {
    const auto transport = alive.lock();
    if (!transport) return;
    (*transport)->dial_later(to);
    (*transport)->events_.down(to, reason, "simulated");
  });
}

void Network::tell_acceptor(const Link& link) {
  SimTransport* const acceptor = std::exchange(link->acceptor, nullptr);
  if (acceptor == nullptr) return;
  acceptor->accepted_.erase(link->id);
  kernel_.after(0, &acceptor->process_, [alive = std::weak_ptr(acceptor->self_), id = link->id] {
    if (const auto transport = alive.lock()) (*transport)->events_.gone(id);
  });
}

// --- One host's end --------------------------------------------------------------------------------

SimTransport::SimTransport(Network& network, std::string host_id, Process& process, cluster::TransportEvents events)
    : network_(network),
      host_id_(std::move(host_id)),
      process_(process),
      events_(std::move(events)),
      self_(std::make_shared<SimTransport*>(this)) {
  network_.listening_[host_id_] = this;
}

// A process that is gone: the kernels of the others hear of it when the network lets them.
SimTransport::~SimTransport() {
  const bool silent = !network_.powered(host_id_);
  network_.listening_.erase(host_id_);
  for (const auto& [to, link] : std::map(dialed_)) {
    link->dialer = nullptr;
    if (!silent && network_.passes(link->from, link->to))
      network_.kernel_.after(network_.delay(), nullptr,
                             [&network = network_, link = link] { network.tell_acceptor(link); });
  }
  for (const auto& [id, link] : std::map(accepted_)) {
    link->acceptor = nullptr;
    if (!silent && network_.passes(link->to, link->from))
      network_.kernel_.after(network_.delay(), nullptr,
                             [&network = network_, link = link] { network.tell_dialer(link, DownReason::kReset); });
  }
}

void SimTransport::set_peers(std::vector<cluster::Peer> peers) {
  std::set<std::string> wanted;
  for (const cluster::Peer& peer : peers) wanted.insert(peer.host_id);
  for (const std::string& host : wanted) {
    if (!peers_.contains(host)) network_.dial(*this, host);
  }
  peers_ = wanted;
}

void SimTransport::dial_later(const std::string& host_id) {
  const Ns wait = network_.kernel_.chance().between(50, 1'000) * kMs;
  network_.kernel_.after(wait, &process_, [this, alive = std::weak_ptr(self_), host_id] {
    if (!alive.expired() && peers_.contains(host_id) && !dialed_.contains(host_id)) network_.dial(*this, host_id);
  });
}

bool SimTransport::ask(const std::string& host_id, std::string payload) {
  const auto link = dialed_.find(host_id);
  if (link == dialed_.end()) return false;
  network_.carry(network_.kept(link->second), true, std::move(payload));
  return true;
}

bool SimTransport::answer(cluster::AcceptedId id, std::string payload) {
  const auto link = accepted_.find(id);
  if (link == accepted_.end()) return false;
  network_.carry(network_.kept(link->second), false, std::move(payload));
  return true;
}

void SimTransport::drop(cluster::AcceptedId id) {
  const auto link = accepted_.find(id);
  if (link != accepted_.end()) network_.break_off(network_.kept(link->second), DownReason::kClosed);
}

}  // namespace usblease::sim
