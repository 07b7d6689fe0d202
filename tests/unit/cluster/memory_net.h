// A Transport in memory between the hosts of one test. A test can cut hosts off, kill them, and lose answers.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/cluster/transport.h"

namespace usblease::cluster_test {

class MemoryTransport;

// Who reaches whom. Frames arrive in order, from the main loop.
class MemoryNet {
 public:
  // As when the process of that host is killed: every connection with it ends with kReset, and is refused from then on.
  void kill(const std::string& host_id);
  // Connections between these two time out, in both directions, and do not come again.
  void cut(const std::string& a, const std::string& b);
  void heal(const std::string& a, const std::string& b);

 private:
  friend class MemoryTransport;
  [[nodiscard]] bool reachable(const std::string& a, const std::string& b) const;
  void reset(const std::string& a, const std::string& b, cluster::DownReason reason);
  void connect_all();

  std::map<std::string, MemoryTransport*> hosts_;
  std::set<std::pair<std::string, std::string>> cuts_;
  cluster::AcceptedId next_id_ = 1;
};

class MemoryTransport : public cluster::Transport {
 public:
  MemoryTransport(MemoryNet& net, std::string host_id, cluster::TransportEvents events);
  ~MemoryTransport() override;

  void set_peers(std::vector<cluster::Peer> peers) override;
  bool ask(const std::string& host_id, std::string payload) override;
  bool answer(cluster::AcceptedId id, std::string payload) override;
  void drop(cluster::AcceptedId id) override;
  void forbid(const std::string& /*host_id*/) override {}
  void permit(const std::string& /*host_id*/) override {}
  [[nodiscard]] bool connected(const std::string& host_id) const override { return dialed_.contains(host_id); }

  // The next answers to this host are lost, and with the last of them the connection.
  void lose_answers(int count) { lost_answers_ = count; }
  [[nodiscard]] std::size_t dropped() const { return dropped_; }

 private:
  friend class MemoryNet;
  void connect(MemoryTransport& to);
  void end(const std::string& host_id, cluster::DownReason reason);

  MemoryNet& net_;
  const std::string host_id_;
  cluster::TransportEvents events_;
  std::set<std::string> peers_;
  std::map<std::string, cluster::AcceptedId> dialed_;    // by host: the id at the other end
  std::map<cluster::AcceptedId, std::string> accepted_;  // who dialed
  int lost_answers_ = 0;
  std::size_t dropped_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster_test
