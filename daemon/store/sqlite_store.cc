#include "daemon/store/sqlite_store.h"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "daemon/store/sqlite_engine.h"
#include "daemon/store/watch_hub.h"

namespace usblease::store {
namespace {

using Clock = std::chrono::steady_clock;

// Bounds of what may wait, and of what goes into one SQLite transaction.
constexpr std::size_t kWaitingCallsMax = 4096;
constexpr std::size_t kWaitingBytesMax = 64UL * 1024 * 1024;
constexpr std::size_t kGroupTxnsMax = 64;
constexpr std::size_t kGroupBytesMax = 1024UL * 1024;

std::size_t bytes_of(const Txn& txn) {
  std::size_t bytes = sizeof(Txn);
  for (const Guard& guard : txn.guards) bytes += sizeof(Guard) + guard.key.size();
  for (const Write& write : txn.writes)
    bytes += sizeof(Write) + write.key.size() + (write.value ? write.value->size() : 0);
  return bytes;
}

// One call: answered once, by the worker or, when that takes too long, by the timer.
struct Call {
  enum class State : std::uint8_t { kWaiting, kRunning, kAnswered };
  enum class What : std::uint8_t { kCommit, kRead, kWatch, kCancelWatch };

  What what = What::kCommit;
  Clock::time_point deadline;
  std::atomic<State> state{State::kWaiting};
  Txn txn;
  std::size_t bytes = 0;
  std::function<void(TxnResult)> committed;
  std::string prefix;
  std::function<void(ReadResult)> was_read;
  WatchId watch_id = 0;
  std::shared_ptr<Watcher> watcher;

  bool move_on(State from, State to) { return state.compare_exchange_strong(from, to); }
};
using CallPtr = std::shared_ptr<Call>;

class SqliteStore final : public Store {
 public:
  SqliteStore(std::unique_ptr<SqliteEngine> engine, Executor executor, std::uint32_t call_timeout_ms);
  ~SqliteStore() override;

  void commit(Txn txn, std::function<void(TxnResult)> done) override;
  void read(std::string prefix, std::function<void(ReadResult)> done) override;
  WatchId watch(std::string prefix, std::uint64_t from_revision, std::function<void(WatchUpdate)> update) override;
  void cancel_watch(WatchId id) override;
  [[nodiscard]] Health health() const override;
  [[nodiscard]] std::string describe() const override { return "sqlite:" + path_; }
  [[nodiscard]] const std::string& cluster_id() const { return cluster_id_; }

 private:
  // On the caller's thread.
  void enqueue(CallPtr call);
  void answer(Call& call, TxnResult result);
  void answer(Call& call, ReadResult result);

  // On the worker's.
  void work();
  std::vector<CallPtr> take_batch();
  void run(const std::vector<CallPtr>& batch);
  void run_commits(const std::vector<CallPtr>& batch);
  void run_read(Call& call);
  void publish();
  void note_health();

  // On the timer's.
  void watch_deadlines();
  void time_out(Call& call);

  const std::string path_;
  const std::string cluster_id_;
  const Executor executor_;
  const std::chrono::milliseconds timeout_;

  mutable std::mutex mutex_;  // of the six below
  std::condition_variable work_waits_;
  std::condition_variable timer_wakes_;
  std::deque<CallPtr> waiting_;
  std::deque<CallPtr> deadlines_;  // in the order of their deadlines
  std::size_t waiting_bytes_ = 0;
  bool timer_idle_ = false;
  bool ending_ = false;
  std::string problem_;
  bool slow_ = false;

  std::unique_ptr<SqliteEngine> engine_;                  // the worker's
  WatchHub hub_;                                          // the worker's
  std::map<WatchId, std::shared_ptr<Watcher>> watchers_;  // the main loop's
  WatchId last_watch_ = 0;

  std::thread worker_;
  std::thread timer_;
};

// Signals are the main thread's.
template <typename Body>
std::thread start_thread(Body body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

SqliteStore::SqliteStore(std::unique_ptr<SqliteEngine> engine, Executor executor, std::uint32_t call_timeout_ms)
    : path_(engine->path()),
      cluster_id_(engine->cluster_id()),
      executor_(std::move(executor)),
      timeout_(call_timeout_ms),
      problem_(engine->problem()),
      engine_(std::move(engine)),
      hub_(executor_, engine_->revision()) {
  worker_ = start_thread([this] { work(); });
  timer_ = start_thread([this] { watch_deadlines(); });
}

SqliteStore::~SqliteStore() {
  for (const auto& [id, watcher] : watchers_) watcher->update.reset();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  work_waits_.notify_one();
  worker_.join();
  {
    // With the lock, or the timer may be between its check and its wait.
    const std::lock_guard lock(mutex_);
    timer_wakes_.notify_one();
  }
  timer_.join();
}

void SqliteStore::commit(Txn txn, std::function<void(TxnResult)> done) {
  auto call = std::make_shared<Call>();
  call->committed = std::move(done);
  if (auto bad = out_of_bounds(txn)) {
    answer(*call, TxnResult{Outcome::kRefused, Cause::kTooLarge, 0, "this transaction is not allowed: " + *bad});
    return;
  }
  call->bytes = bytes_of(txn);
  call->txn = std::move(txn);
  enqueue(std::move(call));
}

void SqliteStore::read(std::string prefix, std::function<void(ReadResult)> done) {
  auto call = std::make_shared<Call>();
  call->what = Call::What::kRead;
  call->was_read = std::move(done);
  if (prefix.size() > kKeyMax) {
    answer(*call, ReadResult{false, 0, {}, "a prefix has at most " + std::to_string(kKeyMax) + " bytes"});
    return;
  }
  call->prefix = std::move(prefix);
  enqueue(std::move(call));
}

WatchId SqliteStore::watch(std::string prefix, std::uint64_t from_revision, std::function<void(WatchUpdate)> update) {
  auto call = std::make_shared<Call>();
  call->what = Call::What::kWatch;
  call->watch_id = ++last_watch_;
  call->watcher = std::make_shared<Watcher>();
  call->watcher->prefix = std::move(prefix);
  call->watcher->from_revision = from_revision;
  call->watcher->update = std::make_shared<std::function<void(WatchUpdate)>>(std::move(update));
  watchers_[call->watch_id] = call->watcher;
  const WatchId id = call->watch_id;
  enqueue(std::move(call));
  return id;
}

void SqliteStore::cancel_watch(WatchId id) {
  const auto found = watchers_.find(id);
  if (found == watchers_.end()) return;
  found->second->update.reset();
  watchers_.erase(found);
  auto call = std::make_shared<Call>();
  call->what = Call::What::kCancelWatch;
  call->watch_id = id;
  enqueue(std::move(call));
}

void SqliteStore::enqueue(CallPtr call) {
  const bool answered = call->what == Call::What::kCommit || call->what == Call::What::kRead;
  call->deadline = Clock::now() + timeout_;
  bool wake_timer = false;
  {
    const std::unique_lock lock(mutex_);
    const bool full = waiting_.size() >= kWaitingCallsMax || waiting_bytes_ + call->bytes > kWaitingBytesMax;
    if (answered && full) {
      const std::string why = path_ + ": too many calls wait for the disk; try again later";
      if (call->what == Call::What::kRead) {
        answer(*call, ReadResult{false, 0, {}, why});
      } else {
        answer(*call, TxnResult{Outcome::kRefused, Cause::kFailed, 0, why});
      }
      return;
    }
    waiting_bytes_ += call->bytes;
    if (answered) {
      while (!deadlines_.empty() && deadlines_.front()->state == Call::State::kAnswered) deadlines_.pop_front();
      deadlines_.push_back(call);
      wake_timer = std::exchange(timer_idle_, false);
    }
    waiting_.push_back(std::move(call));
  }
  work_waits_.notify_one();
  if (wake_timer) timer_wakes_.notify_one();
}

void SqliteStore::answer(Call& call, TxnResult result) {
  executor_([done = std::move(call.committed), result = std::move(result)]() mutable { done(std::move(result)); });
}

void SqliteStore::answer(Call& call, ReadResult result) {
  executor_([done = std::move(call.was_read), result = std::move(result)]() mutable { done(std::move(result)); });
}

Health SqliteStore::health() const {
  const std::lock_guard lock(mutex_);
  if (!problem_.empty()) return {false, problem_};
  if (slow_) return {false, path_ + ": the disk has not answered in time; check it"};
  return {};
}

void SqliteStore::work() {
  for (;;) {
    const std::vector<CallPtr> batch = take_batch();
    if (batch.empty()) break;
    run(batch);
    engine_->settle();
    publish();
    note_health();
  }
  engine_.reset();
}

// Transactions that wait together go together, up to the next read: that must see exactly those before it.
std::vector<CallPtr> SqliteStore::take_batch() {
  std::vector<CallPtr> batch;
  std::size_t bytes = 0;
  std::unique_lock lock(mutex_);
  work_waits_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
  while (!waiting_.empty()) {
    Call& next = *waiting_.front();
    const bool fits =
        batch.empty() || (next.what == Call::What::kCommit && batch.front()->what == Call::What::kCommit &&
                          batch.size() < kGroupTxnsMax && bytes + next.bytes <= kGroupBytesMax);
    if (!fits) break;
    bytes += next.bytes;
    waiting_bytes_ -= next.bytes;
    batch.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return batch;
}

void SqliteStore::run(const std::vector<CallPtr>& batch) {
  Call& first = *batch.front();
  switch (first.what) {
    case Call::What::kCommit:
      run_commits(batch);
      return;
    case Call::What::kRead:
      run_read(first);
      return;
    case Call::What::kWatch:
      hub_.add(first.watch_id, std::move(first.watcher));
      return;
    case Call::What::kCancelWatch:
      hub_.remove(first.watch_id);
      return;
  }
}

void SqliteStore::run_commits(const std::vector<CallPtr>& batch) {
  std::vector<Call*> calls;
  std::vector<const Txn*> txns;
  for (const CallPtr& call : batch) {
    if (!call->move_on(Call::State::kWaiting, Call::State::kRunning)) continue;  // refused by the timer
    calls.push_back(call.get());
    txns.push_back(&call->txn);
  }
  if (calls.empty()) return;
  std::vector<TxnResult> results = engine_->commit(txns);
  note_health();  // before the answers: whoever has one may ask
  for (std::size_t i = 0; i < calls.size(); ++i) {
    if (!calls[i]->move_on(Call::State::kRunning, Call::State::kAnswered)) continue;
    answer(*calls[i], std::move(results[i]));
  }
}

void SqliteStore::run_read(Call& call) {
  if (!call.move_on(Call::State::kWaiting, Call::State::kRunning)) return;
  ReadResult result = engine_->read(call.prefix);
  note_health();
  if (call.move_on(Call::State::kRunning, Call::State::kAnswered)) answer(call, std::move(result));
}

void SqliteStore::publish() {
  const std::vector<WatchUpdate> changes = engine_->take_changes();
  if (!changes.empty()) hub_.publish(changes);
}

void SqliteStore::note_health() {
  const std::lock_guard lock(mutex_);
  problem_ = engine_->problem();
  slow_ = false;
}

void SqliteStore::watch_deadlines() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!deadlines_.empty() && deadlines_.front()->state == Call::State::kAnswered) deadlines_.pop_front();
    if (deadlines_.empty()) {
      if (ending_) return;
      timer_idle_ = true;
      timer_wakes_.wait(lock, [this] { return ending_ || !deadlines_.empty(); });
      continue;
    }
    const CallPtr oldest = deadlines_.front();
    if (Clock::now() < oldest->deadline) {
      timer_wakes_.wait_until(lock, oldest->deadline);
      continue;
    }
    deadlines_.pop_front();
    slow_ = true;
    time_out(*oldest);
  }
}

void SqliteStore::time_out(Call& call) {
  const bool never_began = call.move_on(Call::State::kWaiting, Call::State::kAnswered);
  if (!never_began && !call.move_on(Call::State::kRunning, Call::State::kAnswered)) return;
  const std::string why = path_ + ": the disk has not answered in time";
  if (call.what == Call::What::kRead) {
    answer(call, ReadResult{false, 0, {}, why});
  } else {
    answer(call, TxnResult{never_began ? Outcome::kRefused : Outcome::kUnknown, Cause::kFailed, 0, why});
  }
}

}  // namespace

Result<std::unique_ptr<Store>> open_sqlite_store(const SqliteOptions& options, Executor executor) {
  auto engine = SqliteEngine::open(options);
  if (!engine) return tl::unexpected(engine.error());
  return std::make_unique<SqliteStore>(std::move(*engine), std::move(executor), options.call_timeout_ms);
}

std::string sqlite_cluster_id(const Store& store) {
  const auto* const sqlite = dynamic_cast<const SqliteStore*>(&store);
  return sqlite == nullptr ? std::string() : sqlite->cluster_id();
}

}  // namespace usblease::store
