#include "tests/sim/store.h"

#include <algorithm>
#include <utility>

#include "daemon/store/envelope.h"

namespace usblease::sim {

using store::Cause;
using store::Outcome;
using store::WatchUpdate;

namespace {

constexpr std::size_t kHistoryMax = 4096;
constexpr Ns kWatchRetry = 100 * kMs;

store::TxnResult refused(Cause cause, std::uint64_t revision, std::string why) {
  return {Outcome::kRefused, cause, revision, std::move(why)};
}

}  // namespace

// --- The engine ------------------------------------------------------------------------------------

std::optional<std::string> StoreEngine::value(const std::string& key) const {
  const auto found = records_.find(key);
  if (found == records_.end()) return std::nullopt;
  auto plain = store::unseal(key, found->second.sealed);
  if (!plain) return std::nullopt;
  return std::move(*plain);
}

std::vector<std::pair<std::string, std::string>> StoreEngine::entries() const {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& [key, record] : records_) {
    if (auto plain = store::unseal(key, record.sealed)) out.emplace_back(key, std::move(*plain));
  }
  return out;
}

store::TxnResult StoreEngine::apply(const StoreClient* by, const store::Txn& txn) {
  for (const store::Guard& guard : txn.guards) {
    const auto found = records_.find(guard.key);
    std::uint64_t revision = 0;
    if (found != records_.end()) {
      revision =
          guard.what == store::Guard::What::kModRevision ? found->second.mod_revision : found->second.create_revision;
    }
    if (revision != guard.revision) return refused(Cause::kGuard, revision_, "a guard on " + guard.key + " failed");
  }
  std::vector<WatchUpdate> changes;
  for (const store::Write& write : txn.writes) {
    if (write.value || records_.contains(write.key))
      changes.push_back({WatchUpdate::What::kChange, revision_ + 1, write.key, write.value});
  }
  if (changes.empty()) return {Outcome::kDone, Cause::kNone, revision_, ""};
  ++revision_;
  if (committed) committed({by, &txn, revision_, &changes});
  for (const store::Write& write : txn.writes) {
    if (!write.value) {
      records_.erase(write.key);
      continue;
    }
    Record& record = records_[write.key];
    if (record.create_revision == 0) record.create_revision = revision_;
    record.mod_revision = revision_;
    record.sealed = store::seal(write.key, *write.value);
    record.owner = write.owned ? by->owner_ : 0;
  }
  publish(by, &txn, std::move(changes));
  if (applied) applied();
  return {Outcome::kDone, Cause::kNone, revision_, ""};
}

store::ReadResult StoreEngine::read(const std::string& prefix) const {
  store::ReadResult result;
  result.revision = revision_;
  for (auto at = records_.lower_bound(prefix); at != records_.end() && at->first.starts_with(prefix); ++at) {
    auto plain = store::unseal(at->first, at->second.sealed);
    if (!plain) return {false, revision_, {}, plain.error().message};
    result.entries.push_back({at->first, std::move(*plain), at->second.create_revision, at->second.mod_revision});
  }
  result.ok = true;
  return result;
}

void StoreEngine::publish(const StoreClient* /*by*/, const store::Txn* /*txn*/, std::vector<WatchUpdate> changes) {
  for (const WatchUpdate& change : changes) {
    for (const auto& [id, owner] : owners_) {
      if (owner.client == nullptr) continue;
      for (const auto& [watch, watching] : owner.client->watches_) owner.client->deliver(watch, change);
    }
    history_.push_back(change);
    if (history_.size() > kHistoryMax) history_.pop_front();
  }
}

void StoreEngine::add_owner(StoreClient& client) {
  const std::uint64_t owner = client.owner_ = next_owner_++;
  owners_[owner] = {&client, &client.process_, kernel_.now() + kOwnerTtl};
  kernel_.after(kOwnerTtl / 4, nullptr, [this, owner] { keep_alive(owner); });
}

// An owner that is there and reached renews its lease; one that is not loses its keys when the lease is over, a little
// later than it could be. Its client may also be told nothing and lose them early.
void StoreEngine::keep_alive(std::uint64_t owner) {
  const auto found = owners_.find(owner);
  if (found == owners_.end()) return;
  Owner& o = found->second;
  const bool renews = o.client != nullptr && o.process->runs() && reachable(*o.process);
  if (renews) o.dies_at = kernel_.now() + kOwnerTtl;
  const bool early = renews && kernel_.chance().permille(faults.early_death_permille);
  if (!early && kernel_.now() < o.dies_at) {
    kernel_.after(kOwnerTtl / 4 + kernel_.chance().below(kOwnerTtl / 8), nullptr, [this, owner] { keep_alive(owner); });
    return;
  }
  end_owner(owner);
  // The client gets a new lease; keys put from now on hang on that one.
  if (o.client != nullptr) {
    StoreClient* client = o.client;
    owners_.erase(owner);
    add_owner(*client);
  } else {
    owners_.erase(owner);
  }
}

void StoreEngine::end_owner(std::uint64_t owner) {
  std::vector<WatchUpdate> changes;
  for (const auto& [key, record] : records_) {
    if (record.owner == owner) changes.push_back({WatchUpdate::What::kChange, revision_ + 1, key, std::nullopt});
  }
  if (changes.empty()) return;
  ++revision_;
  if (committed) committed({nullptr, nullptr, revision_, &changes});
  for (const WatchUpdate& change : changes) {
    kernel_.trace("store", "the owner of " + change.key + " is gone");
    records_.erase(change.key);
  }
  publish(nullptr, nullptr, std::move(changes));
}

void StoreEngine::restore(const Image& image) {
  const std::uint64_t jump = 1'000;  // etcd: --bump-revision, so that no revision means two things
  records_ = image;
  for (auto at = records_.begin(); at != records_.end();) at = at->second.owner != 0 ? records_.erase(at) : ++at;
  revision_ += jump;
  history_.clear();
  for (const auto& [id, owner] : owners_) {
    if (owner.client == nullptr) continue;
    for (auto& [watch, watching] : owner.client->watches_)
      owner.client->hand_over(watch, {WatchUpdate::What::kCompacted, revision_, {}, std::nullopt}, kernel_.now());
  }
}

void StoreEngine::amend(const std::string& key, const std::optional<std::string>& value) {
  if (!value) {
    records_.erase(key);
    return;
  }
  Record& record = records_[key];
  if (record.create_revision == 0) record.create_revision = revision_;
  record.mod_revision = revision_;
  record.sealed = store::seal(key, *value);
}

void StoreEngine::flip_bit(const std::string& key, std::uint64_t bit) {
  const auto found = records_.find(key);
  if (found == records_.end() || found->second.sealed.empty()) return;
  char& byte = found->second.sealed[(bit / 8) % found->second.sealed.size()];
  byte = static_cast<char>(byte ^ (1 << (bit % 8)));
}

// --- A client --------------------------------------------------------------------------------------

StoreClient::StoreClient(StoreEngine& engine, Process& process, store::Executor executor)
    : engine_(engine), process_(process), executor_(std::move(executor)), self_(std::make_shared<StoreClient*>(this)) {
  engine_.add_owner(*this);
}

StoreClient::~StoreClient() {
  if (dead_) return;
  for (auto& [id, end] : std::exchange(outstanding_, {})) end();
  const auto owner = engine_.owners_.find(owner_);
  if (owner != engine_.owners_.end()) owner->second.client = nullptr;
}

void StoreClient::die() {
  dead_ = true;
  self_.reset();
  outstanding_.clear();
  watches_.clear();
  const auto owner = engine_.owners_.find(owner_);
  if (owner != engine_.owners_.end()) owner->second.client = nullptr;
}

template <typename ResultT>
struct StoreClient::Call {
  std::function<void(ResultT)> done;
  store::Executor executor;
  bool ended = false;
  void end(ResultT result) {
    if (std::exchange(ended, true)) return;
    executor([done = std::move(done), result = std::move(result)]() mutable { done(std::move(result)); });
  }
};

// One call: its way there, what happens there, its way back; and the caller's patience.
template <typename ResultT>
void StoreClient::start(std::function<ResultT()> act, ResultT timed_out, std::function<void(ResultT)> done) {
  Kernel& kernel = engine_.kernel_;
  Chance& chance = kernel.chance();
  const StoreFaults& faults = engine_.faults;
  auto call = std::make_shared<Call<ResultT>>();
  call->done = std::move(done);
  call->executor = executor_;
  const std::uint64_t id = next_call_++;
  outstanding_[id] = [call, timed_out] { call->end(timed_out); };

  const auto forget = [self = std::weak_ptr(self_), id] {
    if (const auto client = self.lock()) (*client)->outstanding_.erase(id);
  };
  const bool lost = chance.permille(faults.lost_permille);
  const bool unheard = chance.permille(faults.unheard_permille);
  const bool late = chance.permille(faults.late_permille);
  Ns there = kernel.now() + chance.between(100'000, faults.latency_max / 2);
  if (late) there += StoreEngine::kCallTimeout + chance.below(2 * kSecond);
  there = late ? there : std::max(there, request_not_before_);
  if (!late) request_not_before_ = there;
  if (!lost) {
    kernel.at(there, nullptr, [this, self = std::weak_ptr(self_), call, act, forget, unheard] {
      // A connection that is cut carries nothing; what a dead process had sent may still arrive.
      if (self.expired()) return;
      if (!engine_.reachable(process_)) return;
      ResultT result = act();
      if (unheard) return;
      engine_.kernel_.after(engine_.kernel_.chance().between(100'000, engine_.faults.latency_max / 2), &process_,
                            [call, forget, result = std::move(result)]() mutable {
                              forget();
                              call->end(std::move(result));
                            });
    });
  }
  kernel.after(StoreEngine::kCallTimeout, &process_, [call, forget, timed_out = std::move(timed_out)]() mutable {
    forget();
    call->end(std::move(timed_out));
  });
}

void StoreClient::commit(store::Txn txn, std::function<void(store::TxnResult)> done) {
  const store::TxnResult unknown{Outcome::kUnknown, Cause::kFailed, 0, "the store did not answer in time"};
  if (const auto bad = store::out_of_bounds(txn)) {
    executor_([done = std::move(done), bad] { done(refused(Cause::kTooLarge, 0, *bad)); });
    return;
  }
  const bool full = engine_.kernel_.chance().permille(engine_.faults.full_permille);
  start<store::TxnResult>(
      [this, txn = std::move(txn), full] {
        if (full && !txn.writes.empty())
          return refused(Cause::kNoSpace, engine_.revision_, "the store's disk is full; make room");
        return engine_.apply(this, txn);
      },
      unknown, std::move(done));
}

void StoreClient::read(std::string prefix, std::function<void(store::ReadResult)> done) {
  if (prefix.size() > store::kKeyMax) {
    executor_([done = std::move(done)] {
      done({false, 0, {}, "a prefix has at most " + std::to_string(store::kKeyMax) + " bytes"});
    });
    return;
  }
  const store::ReadResult unknown{false, 0, {}, "the store did not answer in time"};
  start<store::ReadResult>(
      [this, prefix = std::move(prefix)] {
        store::ReadResult result = engine_.read(prefix);
        health_ = {result.ok, result.message};
        return result;
      },
      unknown, std::move(done));
}

store::WatchId StoreClient::watch(std::string prefix, std::uint64_t from_revision,
                                  std::function<void(WatchUpdate)> update) {
  const store::WatchId id = next_watch_++;
  watches_[id] = {std::move(prefix), from_revision, std::move(update)};
  const std::uint64_t oldest = engine_.history_.empty() ? engine_.revision_ + 1 : engine_.history_.front().revision;
  const bool all_kept = engine_.history_.size() < kHistoryMax && oldest <= 1;
  if (from_revision < oldest && !all_kept && from_revision <= engine_.revision_) {
    hand_over(id, {WatchUpdate::What::kCompacted, oldest, {}, std::nullopt}, engine_.kernel_.now());
    return id;
  }
  for (const WatchUpdate& change : engine_.history_) deliver(id, change);  // nothing is called before this returns
  return id;
}

void StoreClient::cancel_watch(store::WatchId id) { watches_.erase(id); }

void StoreClient::deliver(store::WatchId id, const WatchUpdate& change) {
  const auto found = watches_.find(id);
  if (found == watches_.end()) return;
  Watching& watching = found->second;
  if (watching.broken || change.revision < watching.next_revision || !change.key.starts_with(watching.prefix)) return;
  Chance& chance = engine_.kernel_.chance();
  const Ns when = std::max(watching.not_before, engine_.kernel_.now() + chance.below(engine_.faults.watch_lag_max));
  watching.not_before = when;
  if (chance.permille(engine_.faults.watch_break_permille)) {
    watching.broken = true;
    return hand_over(id, {WatchUpdate::What::kCompacted, change.revision, {}, std::nullopt}, when);
  }
  hand_over(id, change, when);
}

void StoreClient::hand_over(store::WatchId id, WatchUpdate update, Ns when) {
  const auto found = watches_.find(id);
  if (found == watches_.end()) return;
  Watching& watching = found->second;
  watching.broken |= update.what == WatchUpdate::What::kCompacted;
  watching.coming.emplace_back(when, std::move(update));
  if (watching.coming.size() == 1) hand_over_next(id, when);
}

// Nothing comes through to whom the store does not reach: he hears of it when he is reached again.
void StoreClient::hand_over_next(store::WatchId id, Ns when) {
  engine_.kernel_.at(when, &process_, [this, self = std::weak_ptr(self_), id] {
    if (self.expired()) return;
    const auto found = watches_.find(id);
    if (found == watches_.end()) return;
    if (!engine_.reachable(process_)) return hand_over_next(id, engine_.kernel_.now() + kWatchRetry);
    WatchUpdate update = std::move(found->second.coming.front().second);
    found->second.coming.pop_front();
    if (!found->second.coming.empty())
      hand_over_next(id, std::max(found->second.coming.front().first, engine_.kernel_.now()));
    executor_([this, self, id, update = std::move(update)]() mutable {
      if (self.expired()) return;
      const auto there = watches_.find(id);
      if (there == watches_.end()) return;
      // A copy, because the callback may cancel its own watch.
      const auto callback = there->second.update;
      if (update.what == WatchUpdate::What::kCompacted) watches_.erase(there);
      callback(std::move(update));
    });
  });
}

}  // namespace usblease::sim
