// The thread that gRPC's completion queue needs. Everything that speaks to etcd lives on it: calls, timers, and the
// state of whoever started them; nothing of that has a lock.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace usblease::store {

class EtcdLoop;

// Owner of one timer of a loop, on the loop's thread; cancels when it dies.
class EtcdTimer {
 public:
  using Key = std::pair<std::chrono::steady_clock::time_point, std::uint64_t>;

  EtcdTimer() = default;
  EtcdTimer(EtcdLoop& loop, Key key) : loop_(&loop), key_(key) {}
  EtcdTimer(EtcdTimer&& other) noexcept : loop_(std::exchange(other.loop_, nullptr)), key_(std::move(other.key_)) {}
  EtcdTimer& operator=(EtcdTimer&& other) noexcept;
  EtcdTimer(const EtcdTimer&) = delete;
  EtcdTimer& operator=(const EtcdTimer&) = delete;
  ~EtcdTimer() { cancel(); }
  void cancel();

 private:
  EtcdLoop* loop_ = nullptr;
  Key key_{};
};

class EtcdLoop {
 public:
  using Clock = std::chrono::steady_clock;

  EtcdLoop();
  EtcdLoop(const EtcdLoop&) = delete;
  EtcdLoop& operator=(const EtcdLoop&) = delete;
  ~EtcdLoop() { stop(); }

  // From any thread: `work` runs on the loop's, in the order of the calls. After stop() it is dropped.
  void post(std::function<void()> work);

  // From any thread but the loop's. Waits until every step has completed, so whoever started calls has cancelled them.
  void stop();

  // All below: on the loop's thread.
  [[nodiscard]] EtcdTimer run_at(Clock::time_point when, std::function<void()> callback);
  [[nodiscard]] EtcdTimer run_after(std::chrono::milliseconds delay, std::function<void()> callback) {
    return run_at(Clock::now() + delay, std::move(callback));
  }

  // The tag of one operation of gRPC on queue(); `done` runs once, with gRPC's "ok".
  void* step(std::function<void(bool ok)> done);
  grpc::CompletionQueue* queue() { return &queue_; }

 private:
  friend class EtcdTimer;

  void run();
  void run_posted();
  void run_timers();
  void complete(void* tag, bool ok);
  [[nodiscard]] bool finished();
  [[nodiscard]] gpr_timespec next_timer() const;
  void wake();

  grpc::CompletionQueue queue_;
  std::map<EtcdTimer::Key, std::function<void()>> timers_;
  std::uint64_t last_timer_ = 0;
  std::uint64_t outstanding_ = 0;

  std::mutex mutex_;  // of the four below
  grpc::Alarm alarm_;
  std::vector<std::function<void()>> posted_;
  bool waking_ = false;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace usblease::store
