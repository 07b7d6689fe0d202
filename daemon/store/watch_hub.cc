#include "daemon/store/watch_hub.h"

#include <utility>

namespace usblease::store {
namespace {

constexpr std::size_t kHistoryChangesMax = 4096;
constexpr std::size_t kHistoryBytesMax = 4UL * 1024 * 1024;

std::size_t bytes_of(const WatchUpdate& change) {
  return sizeof(WatchUpdate) + change.key.size() + (change.value ? change.value->size() : 0);
}

bool concerns(const Watcher& watcher, const WatchUpdate& change) {
  return change.revision >= watcher.from_revision && change.key.starts_with(watcher.prefix);
}

}  // namespace

void WatchHub::add(WatchId id, std::shared_ptr<Watcher> watcher) {
  if (watcher->from_revision <= floor_) {
    post(watcher, {WatchUpdate::What::kCompacted, floor_, {}, std::nullopt});
    return;
  }
  for (const WatchUpdate& change : history_) {
    if (concerns(*watcher, change)) post(watcher, change);
  }
  watchers_[id] = std::move(watcher);
}

void WatchHub::publish(std::span<const WatchUpdate> changes) {
  for (const WatchUpdate& change : changes) {
    remember(change);
    for (const auto& [id, watcher] : watchers_) {
      if (concerns(*watcher, change)) post(watcher, change);
    }
  }
}

void WatchHub::remember(const WatchUpdate& change) {
  history_.push_back(change);
  history_bytes_ += bytes_of(change);
  while (history_.size() > kHistoryChangesMax || history_bytes_ > kHistoryBytesMax) {
    floor_ = history_.front().revision;
    history_bytes_ -= bytes_of(history_.front());
    history_.pop_front();
  }
}

void WatchHub::post(const std::shared_ptr<Watcher>& watcher, WatchUpdate update) {
  executor_([watcher, update = std::move(update)]() mutable {
    // A copy, because the callback may cancel its own watch.
    if (const auto callback = watcher->update) (*callback)(std::move(update));
  });
}

}  // namespace usblease::store
