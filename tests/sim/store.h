// The store under simulated time: one engine for the cluster, and a client for each process that uses it.
// It keeps the contract of daemon/store/store.h, and does everything bad that the contract allows.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/store/store.h"
#include "tests/sim/kernel.h"

namespace usblease::sim {

class StoreClient;

struct StoreFaults {
  std::uint64_t lost_permille = 0;         // a call never arrives: unknown, and not done
  std::uint64_t unheard_permille = 0;      // its answer never arrives: unknown, and done
  std::uint64_t late_permille = 0;         // it arrives after the caller was told "unknown": done later
  std::uint64_t full_permille = 0;         // no room: refused
  std::uint64_t early_death_permille = 0;  // of an owner's keys, at each of its keep-alives
  std::uint64_t watch_break_permille = 0;  // a watch is told "compacted" instead of its change
  Ns latency_max = 3 * kMs;
  Ns watch_lag_max = 5 * kMs;
};

// What a check may look at when a transaction has been done.
struct Committed {
  const StoreClient* by = nullptr;
  const store::Txn* txn = nullptr;  // nullptr: an owner's keys died
  std::uint64_t revision = 0;
  const std::vector<store::WatchUpdate>* changes = nullptr;
};

class StoreEngine {
 public:
  explicit StoreEngine(Kernel& kernel) : kernel_(kernel) {}

  StoreFaults faults;
  // Whether this process reaches the majority now.
  std::function<bool(const Process&)> reachable = [](const Process&) { return true; };
  // Before the changes of a transaction are visible to anybody.
  std::function<void(const Committed&)> committed;
  // After they are.
  std::function<void()> applied;

  static constexpr Ns kOwnerTtl = 2 * kSecond;
  static constexpr Ns kCallTimeout = 5 * kSecond;

  struct Record {
    std::string sealed;
    std::uint64_t create_revision = 0;
    std::uint64_t mod_revision = 0;
    std::uint64_t owner = 0;  // 0: nobody's
  };
  [[nodiscard]] const std::map<std::string, Record>& records() const { return records_; }
  [[nodiscard]] std::uint64_t revision() const { return revision_; }
  // What a reader would see.
  [[nodiscard]] std::optional<std::string> value(const std::string& key) const;
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> entries() const;

  // An operator's acts and a disk's: the records of an earlier instant, and one flipped bit.
  using Image = std::map<std::string, Record>;
  [[nodiscard]] Image image() const { return records_; }
  void restore(const Image& image);
  // A record as an operator's tool writes it into a store that nobody serves from; nullopt: it goes.
  void amend(const std::string& key, const std::optional<std::string>& value);
  void flip_bit(const std::string& key, std::uint64_t bit);

 private:
  friend class StoreClient;
  void add_owner(StoreClient& client);
  void end_owner(std::uint64_t owner);
  void keep_alive(std::uint64_t owner);
  store::TxnResult apply(const StoreClient* by, const store::Txn& txn);
  store::ReadResult read(const std::string& prefix) const;
  void publish(const StoreClient* by, const store::Txn* txn, std::vector<store::WatchUpdate> changes);

  struct Owner {
    StoreClient* client;  // nullptr: its process is gone
    Process* process;
    Ns dies_at;
  };
  Kernel& kernel_;
  std::map<std::string, Record> records_;
  std::uint64_t revision_ = 0;
  std::uint64_t next_owner_ = 1;
  std::map<std::uint64_t, Owner> owners_;
  std::deque<store::WatchUpdate> history_;
};

class StoreClient final : public store::Store {
 public:
  // `process` is the caller's: nothing reaches it while it is frozen.
  StoreClient(StoreEngine& engine, Process& process, store::Executor executor);
  ~StoreClient() override;

  void commit(store::Txn txn, std::function<void(store::TxnResult)> done) override;
  void read(std::string prefix, std::function<void(store::ReadResult)> done) override;
  store::WatchId watch(std::string prefix, std::uint64_t from_revision,
                       std::function<void(store::WatchUpdate)> update) override;
  void cancel_watch(store::WatchId id) override;
  [[nodiscard]] store::Health health() const override { return health_; }
  [[nodiscard]] std::string describe() const override { return "simulated"; }

  // As SIGKILL: what has not left this process never does.
  void die();
  [[nodiscard]] const Process& process() const { return process_; }

 private:
  friend class StoreEngine;
  struct Watching {
    std::string prefix;
    std::uint64_t next_revision;
    std::function<void(store::WatchUpdate)> update;
    bool broken = false;
    std::deque<std::pair<Ns, store::WatchUpdate>> coming;  // when each can be there: in order, one after the other
    Ns not_before = 0;
  };
  template <typename ResultT>
  struct Call;
  template <typename ResultT>
  void start(std::function<ResultT()> act, ResultT timed_out, std::function<void(ResultT)> done);
  void deliver(store::WatchId id, const store::WatchUpdate& change);
  void hand_over(store::WatchId id, store::WatchUpdate update, Ns when);
  void hand_over_next(store::WatchId id, Ns when);

  StoreEngine& engine_;
  Process& process_;
  store::Executor executor_;
  std::uint64_t owner_ = 0;
  Ns request_not_before_ = 0;  // calls of one client begin in order
  store::Health health_;
  std::map<store::WatchId, Watching> watches_;
  store::WatchId next_watch_ = 1;
  std::map<std::uint64_t, std::function<void()>> outstanding_;  // how each would end now
  std::uint64_t next_call_ = 1;
  bool dead_ = false;
  std::shared_ptr<StoreClient*> self_;
};

}  // namespace usblease::sim
