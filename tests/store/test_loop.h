// A main loop for tests of stores: what is posted runs inside run_until() and nowhere else.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include "daemon/store/store.h"

namespace usblease::store_test {

class TestLoop {
 public:
  store::Executor executor() {
    return [this](std::function<void()> callback) { post(std::move(callback)); };
  }

  // False: `done` was not true within the bound, which only ends what hangs.
  template <typename Predicate>
  bool run_until(Predicate done, std::chrono::milliseconds bound = std::chrono::seconds(20)) {
    const auto end = std::chrono::steady_clock::now() + bound;
    while (!done()) {
      if (!run_one(end)) return done();
    }
    return true;
  }

  // Runs what is posted already.
  void run_posted() {
    while (run_one(std::chrono::steady_clock::time_point::min())) {
    }
  }

  // True inside a callback that the loop runs.
  [[nodiscard]] bool running() const { return running_; }

  // Called again and again while nothing is posted: a store under simulated time moves its clock here, and there is no
  // thread to wait for. Default: wait for a thread.
  void set_idle(std::function<void()> idle) { idle_ = std::move(idle); }

 private:
  void post(std::function<void()> callback) {
    {
      const std::lock_guard lock(mutex_);
      posted_.push_back(std::move(callback));
    }
    wakes_.notify_one();
  }

  bool run_one(std::chrono::steady_clock::time_point end) {
    while (idle_ && posted_.empty() && std::chrono::steady_clock::now() < end) idle_();
    std::unique_lock lock(mutex_);
    if (!wakes_.wait_until(lock, idle_ ? std::chrono::steady_clock::time_point::min() : end,
                           [this] { return !posted_.empty(); }))
      return false;
    const std::function<void()> callback = std::move(posted_.front());
    posted_.pop_front();
    lock.unlock();
    running_ = true;
    callback();
    running_ = false;
    return true;
  }

  std::mutex mutex_;
  std::condition_variable wakes_;
  std::deque<std::function<void()>> posted_;
  std::function<void()> idle_;
  bool running_ = false;
};

}  // namespace usblease::store_test
