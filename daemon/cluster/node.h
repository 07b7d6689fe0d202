// This host's place in its cluster: the coordinator where there is a store, the router, and the service for peers,
// wired together over one transport. In a cluster of one there is no transport.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "common/error.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/members.h"
#include "daemon/cluster/peer_calls.h"
#include "daemon/cluster/peer_service.h"
#include "daemon/cluster/router.h"
#include "daemon/cluster/transport.h"

namespace usblease::cluster {

struct NodeEvents {
  RouterEvents router;
  // What the coordinator in this process recorded.
  std::function<void(const record::Event&)> event;
  // This host became the active coordinator, or is it no longer.
  std::function<void(bool active)> active;
  // After every load of the coordinator in this process.
  std::function<void()> loaded;
};

class Node {
 public:
  // `store`: nullptr on a plain host. To outlive the node.
  Node(store::Store* store, const CoordinatorOptions& options, NodeEvents events);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // For Transport::open; all but `join`, which is membership's. Nothing may come before use().
  TransportEvents transport_events();
  // Once, before start(). The transport has to end before the node.
  void use(Transport& transport, PeerServiceHooks hooks);
  // Whom to dial, and who may stand. Also later, when membership changes. Before it, and without a transport, this host
  // is the only candidate.
  void set_members(const Members& members);
  void start();

  Router& router() { return router_; }
  Coordinator* coordinator() { return coordinator_.get(); }
  PeerCalls* calls() { return calls_.get(); }

  // Hands the coordinator's part to another candidate, in order. kRefused: this host is not the coordinator, or the
  // other is no candidate; kUnavailable: it cannot be reached or does not take it.
  void transfer(const std::string& to_host_id, const std::function<void(Result<void>)>& done);

 private:
  CoordinatorEvents coordinator_events();
  void on_up(const std::string& host_id);
  void on_down(const std::string& host_id, DownReason reason);
  [[nodiscard]] peer::CoordinatorIs who() const;
  void tell_candidates(const peer::GoneVote& vote);

  const std::string host_id_;
  NodeEvents events_;
  std::set<std::string> candidates_;
  std::optional<peer::GoneVote> vote_;  // the last one: told again to a candidate that was not connected
  Transport* transport_ = nullptr;
  std::unique_ptr<PeerCalls> calls_;
  std::unique_ptr<PeerService> service_;
  Router router_;
  std::unique_ptr<Coordinator> coordinator_;
};

}  // namespace usblease::cluster
