// Hosts of one cluster in one process: real nodes over a store and a net in memory, on the real main loop.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/cluster/node.h"
#include "tests/unit/cluster/memory_net.h"
#include "tests/unit/cluster/memory_store.h"

namespace usblease::cluster_test {

// One daemon. Destroying it is what kill -9 does: connections are reset, the key in the store stays.
class TestHost {
 public:
  TestHost(MemoryNet& net, Database& database, const std::string& id, bool candidate, lease::Timing timing);
  ~TestHost();

  MemoryStore& store() { return *store_; }
  MemoryTransport& transport() { return *transport_; }
  cluster::Node& node() { return *node_; }
  cluster::Router& router() { return node_->router(); }
  [[nodiscard]] bool is_coordinator() const {
    return node_->coordinator() != nullptr && node_->coordinator()->active();
  }

  // What came, in order: "ready", "away", "view", "reply", "settled REQUEST CODE".
  std::vector<std::string> log;
  peer::HostView view;  // the last one
  int ready = 0;
  bool registers = false;  // at each coordinator, as a host agent does
  std::map<std::string, command::Reply> settled;
  std::vector<cluster::ForwardedCall> forwarded;
  int clients_gone = 0;

 private:
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<cluster::Node> node_;
  std::unique_ptr<MemoryTransport> transport_;
};

class World {
 public:
  // `candidates` and `plain` hosts, separated by spaces. All of them start.
  explicit World(const std::string& candidates, const std::string& plain = "", lease::Timing timing = {});

  TestHost& operator[](const std::string& id) { return *hosts_.at(id); }
  TestHost& add(const std::string& id, bool candidate);
  void kill(const std::string& id) { hosts_.erase(id); }

  // Runs the main loop until it is so; fails the test after 20 s.
  void until(const std::function<bool()>& done);
  // Runs the main loop for that long: for what must not happen.
  void run_for_ms(std::uint64_t ms);

  // The id of the only active coordinator; empty: none.
  std::string coordinator();
  // Waits for one that every host is ready to use.
  std::string settle();
  std::string any_other(const std::string& than);

  command::Reply submit(const std::string& host, command::Command command);
  peer::RenewalAnswer renew(const std::string& host);
  // Registers `host`, at each later coordinator too, and has it report `device` as present.
  void plug(const std::string& host, const std::string& device);

  MemoryNet net;
  Database database;

 private:
  cluster::Members members_;
  lease::Timing timing_;
  std::map<std::string, std::unique_ptr<TestHost>> hosts_;
};

std::string boot_of(const std::string& host);
command::Command register_host(const std::string& host);
command::Command report_device(const std::string& host, const std::string& device);
command::Command acquire(const std::string& host, const std::string& request, const std::string& device,
                         std::uint32_t wait_ms = 0, const std::string& nonce = "0123456789abcdef");
command::Command release(const command::Command& acquired);
command::Command confirm_fenced(const std::string& home, const std::string& device, std::uint64_t token);

}  // namespace usblease::cluster_test
