// Watches on changes that this process itself makes: the part that the stores without a remote engine share.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "daemon/store/store.h"

namespace usblease::store {

// One watch. The callback is touched on the main loop's thread only: cancelling empties it there.
struct Watcher {
  std::string prefix;
  std::uint64_t from_revision = 0;
  std::shared_ptr<std::function<void(WatchUpdate)>> update;
};

// Not for several threads at once; posts through `executor`.
class WatchHub {
 public:
  // Nothing is known about changes up to and including `floor`.
  WatchHub(Executor executor, std::uint64_t floor) : executor_(std::move(executor)), floor_(floor) {}

  // Posts what is remembered of it, or kCompacted.
  void add(WatchId id, std::shared_ptr<Watcher> watcher);
  void remove(WatchId id) { watchers_.erase(id); }

  // In the order in which they happened. Remembers the last of them, for watches that begin a little late.
  void publish(std::span<const WatchUpdate> changes);

 private:
  void post(const std::shared_ptr<Watcher>& watcher, WatchUpdate update);
  void remember(const WatchUpdate& change);

  Executor executor_;
  std::uint64_t floor_;
  std::size_t history_bytes_ = 0;
  std::deque<WatchUpdate> history_;
  std::map<WatchId, std::shared_ptr<Watcher>> watchers_;
};

}  // namespace usblease::store
