// A few threads for calls that may block for long, so shared out that nobody has to wait for what hangs.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace usblease::host {

// A call about a guest whose QEMU hangs does not return until it goes on or ends, so it takes a thread with it. One
// thread stays free for events, and two more for queries.
inline constexpr std::size_t kPoolThreads = 8;
inline constexpr std::size_t kChangesMax = 5;
inline constexpr std::size_t kPoolTasksMax = 1024;

enum class Lane : std::uint8_t {
  kEvent,   // at most 1 at a time: in order
  kQuery,   // with kChange all threads but one
  kChange,  // at most kChangesMax at a time
};

class WorkPool {
 public:
  WorkPool();
  ~WorkPool() { stop(); }
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // Tasks of one key (not empty) run one after another in the order of submission. False: kPoolTasksMax wait already.
  // From any thread.
  [[nodiscard]] bool submit(Lane lane, std::string key, std::function<void()> task);

  // Drops what waits and waits up to `kStopWaitMs` for what runs; a thread that still hangs then is left to itself.
  void stop();

  static constexpr std::uint64_t kStopWaitMs = 1000;

 private:
  struct Task {
    Lane lane;
    std::string key;
    std::function<void()> run;
  };
  // Shared with the threads, since one of them may outlive the pool.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::list<Task> waiting;
    std::set<std::string> busy_keys;
    std::size_t running[3] = {0, 0, 0};  // by Lane
    std::size_t threads = kPoolThreads;  // that have not ended
    bool stopping = false;
  };
  static void work(const std::shared_ptr<Shared>& shared);
  static std::list<Task>::iterator next(Shared& shared);

  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::vector<std::thread> threads_;
};

}  // namespace usblease::host
