// The store's contract in memory, for several processes at once: one Database, one MemoryStore for each of them. A test
// can lose answers, cut a store off, and end an owner's lease.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "daemon/store/store.h"

namespace usblease::cluster_test {

struct Record {
  std::string value;
  std::uint64_t create_revision = 0;
  std::uint64_t mod_revision = 0;
  const void* owner = nullptr;
};

class MemoryStore;

struct Database {
  std::uint64_t revision = 1;
  std::map<std::string, Record> records;
  std::set<MemoryStore*> stores;
  std::vector<std::string> writers;  // host by host, of every transaction that was done

  void tell(const std::string& key, const std::optional<std::string>& value);
};

class MemoryStore : public store::Store {
 public:
  MemoryStore(Database& database, std::string name);
  ~MemoryStore() override;

  void commit(store::Txn txn, std::function<void(store::TxnResult)> done) override;
  void read(std::string prefix, std::function<void(store::ReadResult)> done) override;
  store::WatchId watch(std::string prefix, std::uint64_t from_revision,
                       std::function<void(store::WatchUpdate)> update) override;
  void cancel_watch(store::WatchId id) override { watches_.erase(id); }
  [[nodiscard]] store::Health health() const override { return {}; }
  [[nodiscard]] std::string describe() const override { return "memory"; }

  // The next transactions are done, but nobody says so.
  void lose_answers(int count) { lost_answers_ = count; }
  // Watches tell nothing until the end.
  void mute_watches() { muted_ = true; }
  // As when the lease of the owner in the engine has run out.
  void expire();
  // Transactions wait until release(): they are done then.
  void hold_commits(bool hold);

 private:
  friend struct Database;
  struct Watch {
    std::string prefix;
    std::function<void(store::WatchUpdate)> update;
  };
  store::TxnResult apply(const store::Txn& txn);
  void notify(const std::string& key, const std::optional<std::string>& value);

  Database& database_;
  const std::string name_;
  int lost_answers_ = 0;
  bool muted_ = false;
  bool holding_ = false;
  std::vector<std::function<void()>> held_;
  store::WatchId next_watch_ = 1;
  std::map<store::WatchId, Watch> watches_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster_test
