#include "daemon/host/work_pool.h"

#include <chrono>
#include <utility>

#include "daemon/host/worker_thread.h"

namespace usblease::host {
namespace {

constexpr std::size_t kEventsMax = 1;
constexpr std::size_t kChangesAndQueriesMax = kPoolThreads - kEventsMax;

std::size_t index(Lane lane) { return static_cast<std::size_t>(lane); }

}  // namespace

WorkPool::WorkPool() {
  for (std::size_t i = 0; i < kPoolThreads; ++i) {
    threads_.push_back(start_worker("libvirt-calls", [shared = shared_] { work(shared); }));
  }
}

void WorkPool::stop() {
  if (threads_.empty()) return;
  std::list<Task> dropped;
  bool all_ended = false;
  {
    std::unique_lock lock(shared_->mutex);
    shared_->stopping = true;
    dropped = std::exchange(shared_->waiting, {});
    shared_->changed.notify_all();
    all_ended = shared_->changed.wait_for(lock, std::chrono::milliseconds(kStopWaitMs),
                                          [this] { return shared_->threads == 0; });
  }
  for (auto& thread : threads_) {
    if (all_ended) {
      thread.join();
    } else {
      thread.detach();
    }
  }
  threads_.clear();
}

bool WorkPool::submit(Lane lane, std::string key, std::function<void()> task) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->waiting.size() >= kPoolTasksMax || shared_->stopping) return false;
  shared_->waiting.push_back({lane, std::move(key), std::move(task)});
  shared_->changed.notify_all();
  return true;
}

// The first task that may run now. Under the mutex.
std::list<WorkPool::Task>::iterator WorkPool::next(Shared& shared) {
  const std::size_t changes = shared.running[index(Lane::kChange)];
  const std::size_t others = changes + shared.running[index(Lane::kQuery)];
  std::set<std::string> passed_over;  // a later task of the same key must not overtake
  for (auto task = shared.waiting.begin(); task != shared.waiting.end(); ++task) {
    bool room = false;
    switch (task->lane) {
      case Lane::kEvent:
        room = shared.running[index(Lane::kEvent)] < kEventsMax;
        break;
      case Lane::kQuery:
        room = others < kChangesAndQueriesMax;
        break;
      case Lane::kChange:
        room = others < kChangesAndQueriesMax && changes < kChangesMax;
        break;
    }
    const bool keyed = !task->key.empty();
    if (room && !(keyed && (shared.busy_keys.contains(task->key) || passed_over.contains(task->key)))) return task;
    if (keyed) passed_over.insert(task->key);
  }
  return shared.waiting.end();
}

void WorkPool::work(const std::shared_ptr<Shared>& shared) {
  std::unique_lock lock(shared->mutex);
  for (;;) {
    auto found = shared->waiting.end();
    shared->changed.wait(lock, [&] {
      found = next(*shared);
      return shared->stopping || found != shared->waiting.end();
    });
    if (shared->stopping) break;
    Task task = std::move(*found);
    shared->waiting.erase(found);
    ++shared->running[index(task.lane)];
    if (!task.key.empty()) shared->busy_keys.insert(task.key);
    lock.unlock();
    task.run();
    task.run = nullptr;  // what it holds goes before others may see the task as done
    lock.lock();
    --shared->running[index(task.lane)];
    shared->busy_keys.erase(task.key);
    shared->changed.notify_all();
  }
  --shared->threads;
  shared->changed.notify_all();
}

}  // namespace usblease::host
