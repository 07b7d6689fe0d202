// The network between daemons: cluster::Transport over connections that are slow, stall, break and are made again.
// Within a connection bytes arrive in order or not at all, as TCP promises; an old connection may still deliver when a
// new one stands already.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "daemon/cluster/transport.h"
#include "tests/sim/kernel.h"

namespace usblease::sim {

class SimTransport;

struct NetworkFaults {
  std::uint64_t lost_permille = 0;   // a packet is lost: TCP sends it again, later
  std::uint64_t reset_permille = 0;  // a connection is reset by something in between
  std::uint64_t slow_permille = 0;   // delayed by up to slow_max, and what follows on its connection with it
  Ns delay_max = 2 * kMs;
  Ns slow_max = kSecond;
};

class Network {
 public:
  explicit Network(Kernel& kernel) : kernel_(kernel) {}
  NetworkFaults faults;
  std::set<std::pair<std::string, std::string>> cut;  // from, to: nothing passes

  // Whether that machine has power: it can refuse a connection, and say that a process is gone.
  std::function<bool(const std::string& host_id)> powered;

  // A connection that nothing passes on for so long is given up, by each end for itself.
  static constexpr Ns kSilentMax = 4 * kSecond;

 private:
  friend class SimTransport;
  struct Connection {
    std::string from;  // who dialed
    std::string to;
    SimTransport* dialer;
    SimTransport* acceptor;  // nullptr: its process is gone
    cluster::AcceptedId id = 0;
    struct Way {
      Ns not_before = 0;             // the next packet arrives not earlier
      std::deque<std::string> held;  // arrived nowhere yet: sent again and again, in order
    };
    Way ways[2];  // towards the acceptor, towards the dialer
    Ns passed_at = 0;
  };
  using Link = std::shared_ptr<Connection>;

  void dial(SimTransport& from, const std::string& to);
  void carry(const Link& link, bool to_acceptor, std::string payload);
  void flush(const Link& link, bool to_acceptor, Ns since);
  void keep_alive(const Link& link);
  void break_off(const Link& link, cluster::DownReason reason);
  void tell_dialer(const Link& link, cluster::DownReason reason);
  void tell_acceptor(const Link& link);
  // A copy: the one in a map may vanish while it is used.
  static Link kept(const Link& link) { return link; }
  [[nodiscard]] bool passes(const std::string& from, const std::string& to) const;
  Ns delay();

  Kernel& kernel_;
  std::map<std::string, SimTransport*> listening_;  // by host
  cluster::AcceptedId next_id_ = 1;
};

class SimTransport final : public cluster::Transport {
 public:
  SimTransport(Network& network, std::string host_id, Process& process, cluster::TransportEvents events);
  ~SimTransport() override;

  void set_peers(std::vector<cluster::Peer> peers) override;
  bool ask(const std::string& host_id, std::string payload) override;
  bool answer(cluster::AcceptedId id, std::string payload) override;
  void drop(cluster::AcceptedId id) override;
  void forbid(const std::string& host_id) override { forbidden_.insert(host_id); }
  void permit(const std::string& host_id) override { forbidden_.erase(host_id); }
  [[nodiscard]] bool connected(const std::string& host_id) const override { return dialed_.contains(host_id); }

 private:
  friend class Network;
  void dial_later(const std::string& host_id);

  Network& network_;
  const std::string host_id_;
  Process& process_;
  cluster::TransportEvents events_;
  std::set<std::string> peers_;
  std::set<std::string> forbidden_;
  std::map<std::string, Network::Link> dialed_;  // up
  std::map<cluster::AcceptedId, Network::Link> accepted_;
  std::shared_ptr<SimTransport*> self_;
};

}  // namespace usblease::sim
