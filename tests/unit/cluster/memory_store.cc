#include "tests/unit/cluster/memory_store.h"

#include <utility>

#include "common/main_loop.h"

namespace usblease::cluster_test {

void Database::tell(const std::string& key, const std::optional<std::string>& value) {
  for (MemoryStore* store : stores) store->notify(key, value);
}

MemoryStore::MemoryStore(Database& database, std::string name) : database_(database), name_(std::move(name)) {
  database_.stores.insert(this);
}

MemoryStore::~MemoryStore() { database_.stores.erase(this); }

void MemoryStore::notify(const std::string& key, const std::optional<std::string>& value) {
  if (muted_) return;
  for (const auto& [id, watch] : watches_) {
    if (!key.starts_with(watch.prefix)) continue;
    store::WatchUpdate update{store::WatchUpdate::What::kChange, database_.revision, key, value};
    post([this, alive = std::weak_ptr(alive_), id = id, update] {
      if (alive.expired() || !watches_.contains(id)) return;
      const auto callback = watches_.at(id).update;
      callback(update);
    });
  }
}

store::TxnResult MemoryStore::apply(const store::Txn& txn) {
  store::TxnResult result;
  for (const store::Guard& guard : txn.guards) {
    const auto found = database_.records.find(guard.key);
    std::uint64_t revision = 0;
    if (found != database_.records.end()) {
      const bool mod = guard.what == store::Guard::What::kModRevision;
      revision = mod ? found->second.mod_revision : found->second.create_revision;
    }
    if (revision == guard.revision) continue;
    result.outcome = store::Outcome::kRefused;
    result.cause = store::Cause::kGuard;
    result.message = "guard on " + guard.key;
    return result;
  }
  result.outcome = store::Outcome::kDone;
  result.revision = ++database_.revision;
  database_.writers.push_back(name_);
  for (const store::Write& write : txn.writes) {
    if (write.value) {
      Record& record = database_.records[write.key];
      record.value = *write.value;
      if (record.create_revision == 0) record.create_revision = database_.revision;
      record.mod_revision = database_.revision;
      record.owner = write.owned ? this : nullptr;
    } else {
      database_.records.erase(write.key);
    }
    database_.tell(write.key, write.value);
  }
  return result;
}

void MemoryStore::commit(store::Txn txn, std::function<void(store::TxnResult)> done) {
  const auto run = [this, alive = std::weak_ptr(alive_), txn = std::move(txn), done = std::move(done)] {
    if (alive.expired()) return;
    store::TxnResult result = apply(txn);
    if (lost_answers_ > 0) {
      --lost_answers_;
      result = store::TxnResult();
      result.message = "the answer was lost";
    }
    done(result);
  };
  post([this, alive = std::weak_ptr(alive_), run] {
    if (alive.expired()) return;
    if (holding_) {
      held_.push_back(run);
    } else {
      run();
    }
  });
}

void MemoryStore::hold_commits(bool hold) {
  holding_ = hold;
  if (hold) return;
  for (const auto& run : std::exchange(held_, {})) run();
}

void MemoryStore::read(std::string prefix, std::function<void(store::ReadResult)> done) {
  post([this, alive = std::weak_ptr(alive_), prefix = std::move(prefix), done = std::move(done)] {
    if (alive.expired()) return;
    store::ReadResult result;
    result.ok = true;
    result.revision = database_.revision;
    for (const auto& [key, record] : database_.records) {
      if (key.starts_with(prefix))
        result.entries.push_back({key, record.value, record.create_revision, record.mod_revision});
    }
    done(result);
  });
}

// Tests watch from the present on.
store::WatchId MemoryStore::watch(std::string prefix, std::uint64_t /*from_revision*/,
                                  std::function<void(store::WatchUpdate)> update) {
  const store::WatchId id = next_watch_++;
  watches_[id] = {std::move(prefix), std::move(update)};
  return id;
}

void MemoryStore::expire() {
  std::vector<std::string> gone;
  for (const auto& [key, record] : database_.records) {
    if (record.owner == this) gone.push_back(key);
  }
  for (const std::string& key : gone) {
    ++database_.revision;
    database_.records.erase(key);
    database_.tell(key, std::nullopt);
  }
}

}  // namespace usblease::cluster_test
