// What must hold at every step, seen from outside: at the devices, at the store, and at whoever was promised something.
// Nothing here asks the product code whether it thinks that it is right.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "command.pb.h"
#include "daemon/lease/state.h"
#include "tests/sim/kernel.h"
#include "tests/sim/store.h"

namespace usblease::sim {

class World;

class Checks {
 public:
  explicit Checks(World& world) : world_(world) {}

  // After every event.
  void step();
  // A transaction is about to be visible.
  void committed(const Committed& what);
  void coordinator_active(const Process& process, bool active, std::uint64_t term);
  // After a transaction.
  void compare_states();
  // Somebody was told that he has it.
  void acknowledged(const command::Reply& reply);
  // The store went back in time: by an operator, who began a new epoch in it, or by its disks. Then nobody but the
  // homes can know: a token that was granted and that no home ever wrote down may be granted again
  // (docs/architecture.md).
  void store_went_back(bool repaired);
  // A home lost its disk: after a store that went back in time it knows no more than that store.
  void home_forgot();
  // Long after the last fault. Empty: all is as it must be.
  [[nodiscard]] std::string unsettled() const;

  [[nodiscard]] std::uint64_t grants() const { return grants_; }
  [[nodiscard]] std::uint64_t elections() const { return last_term_; }

 private:
  void coordinator_written(const Committed& what, const std::optional<std::string>& value);
  void device_written(const std::string& name, const std::optional<std::string>& value, std::uint64_t revision);
  void request_written(const std::string& id, const std::optional<std::string>& value);
  void host_written(const std::string& id, const std::optional<std::string>& value);
  void lease_ended(const std::string& device, const record::Lease& lease);
  void fair(const record::Device& device);
  [[nodiscard]] bool passed_over(const record::Request& other, const record::Lease& lease) const;
  void event_written(const std::optional<std::string>& value);
  void meta_written(const std::optional<std::string>& value);
  void forget_what_nobody_remembers();
  [[nodiscard]] std::string unsettled_device(const std::string& name, const record::Device& device) const;
  // The coordinator, if what it holds in memory can be compared with the record now.
  [[nodiscard]] const lease::State* memory() const;
  [[nodiscard]] std::string differs(const lease::State& memory, const std::string& key) const;
  [[nodiscard]] std::string differs_anywhere() const;
  void fail(const std::string& what);

  World& world_;
  std::uint64_t last_term_ = 0;
  Ns last_election_ = 0;
  std::map<std::uint64_t, const Process*> term_of_;
  const Process* holder_ = nullptr;  // of the coordinator key
  std::map<std::string, record::Device> devices_;
  std::map<std::string, record::Request> requests_;
  std::map<std::string, record::Host> hosts_;
  std::map<std::string, Ns> gone_at_;  // by host: when it was last counted as gone
  std::map<std::string, std::uint64_t> greatest_granted_;
  std::map<std::string, std::uint64_t> greatest_live_;  // at the device itself
  std::set<std::pair<std::string, std::uint64_t>> granted_;
  // What the record knew before it went back in time. Its relays go on until their home has told the coordinator.
  std::set<std::pair<std::string, std::uint64_t>> forgotten_;
  bool went_back_ = false;  // and no new epoch has begun since
  std::uint64_t epoch_ = 0;
  std::set<std::string> written_;  // by the last transaction
  // Whose requests for which device were cancelled or timed out in it: guest's UUID, device.
  std::set<std::pair<std::string, std::string>> dropped_;
  std::map<std::pair<std::string, std::string>, int> served_;  // and who was granted which
  std::set<std::string> declared_dead_;                        // in it
  std::uint64_t transactions_ = 0;
  std::uint64_t grants_ = 0;
};

}  // namespace usblease::sim
