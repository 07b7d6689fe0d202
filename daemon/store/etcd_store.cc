#include "daemon/store/etcd_store.h"

#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <utility>

#include "daemon/store/etcd_calls.h"
#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_lease.h"
#include "daemon/store/etcd_loop.h"
#include "daemon/store/etcd_upkeep.h"
#include "daemon/store/etcd_watch.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

// At the end, what is under way may finish in this time, and then the lease may be revoked in as much again.
constexpr milliseconds kCloseBound{1000};

// What lives on the loop's thread. The loop is the last to go, and its thread ends when no call is left.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  Engine(EtcdAccess access, Executor executor)
      : options_(access.options),
        executor_(std::move(executor)),
        endpoints_(loop_, std::move(access), [this] { changed(); }),
        lease_(loop_, endpoints_, options_.owner_ttl_ms, [this] { calls_.pump(); }),
        calls_(loop_, endpoints_, lease_, options_, [this] { note_health(); }),
        upkeep_(loop_, endpoints_, options_) {
    loop_.post([this] { endpoints_.start(); });
  }

  // On the main loop's thread.
  void commit(Txn txn, std::function<void(TxnResult)> done);
  void read(std::string prefix, std::function<void(ReadResult)> done);
  void watch(WatchId id, std::shared_ptr<Watcher> watcher);
  void cancel_watch(WatchId id);
  void set_endpoints(std::vector<std::string> endpoints);
  void use_credentials(EtcdAccess access);
  void set_upkeep(bool on);
  void close();
  [[nodiscard]] std::string problem() const;
  [[nodiscard]] const EtcdOptions& options() const { return options_; }
  void answer(std::function<void()> callback) { executor_(std::move(callback)); }

 private:
  void changed();
  void note_health();
  void deliver(const std::shared_ptr<Watcher>& watcher, std::vector<WatchUpdate> updates,
               std::function<void()> consumed);
  void close_here(std::function<void()> done);

  const EtcdOptions options_;
  const Executor executor_;
  mutable std::mutex mutex_;
  std::string problem_ = "etcd: no member has answered yet";

  EtcdLoop loop_;
  EtcdEndpoints endpoints_;
  EtcdLease lease_;
  EtcdCalls calls_;
  EtcdUpkeep upkeep_;
  std::map<WatchId, std::shared_ptr<EtcdWatch>> watches_;
  EtcdTimer close_bound_;
};

void Engine::commit(Txn txn, std::function<void(TxnResult)> done) {
  const auto deadline = EtcdLoop::Clock::now() + milliseconds(options_.call_timeout_ms);
  auto answered = [this, done = std::move(done)](TxnResult result) {
    executor_([done, result = std::move(result)]() mutable { done(std::move(result)); });
  };
  loop_.post([this, txn = std::move(txn), deadline, answered = std::move(answered)]() mutable {
    calls_.commit(std::move(txn), deadline, std::move(answered));
  });
}

void Engine::read(std::string prefix, std::function<void(ReadResult)> done) {
  const auto deadline = EtcdLoop::Clock::now() + milliseconds(options_.call_timeout_ms);
  auto answered = [this, done = std::move(done)](ReadResult result) {
    executor_([done, result = std::move(result)]() mutable { done(std::move(result)); });
  };
  loop_.post([this, prefix = std::move(prefix), deadline, answered = std::move(answered)]() mutable {
    calls_.read(std::move(prefix), deadline, std::move(answered));
  });
}

void Engine::watch(WatchId id, std::shared_ptr<Watcher> watcher) {
  loop_.post([this, id, watcher = std::move(watcher)] {
    const auto watch =
        std::make_shared<EtcdWatch>(loop_, endpoints_, options_.key_prefix, watcher->prefix, watcher->from_revision,
                                    [this, watcher](std::vector<WatchUpdate> updates, std::function<void()> consumed) {
                                      deliver(watcher, std::move(updates), std::move(consumed));
                                    });
    watches_[id] = watch;
    watch->open();
  });
}

void Engine::cancel_watch(WatchId id) {
  loop_.post([this, id] {
    const auto found = watches_.find(id);
    if (found == watches_.end()) return;
    found->second->cancel();
    watches_.erase(found);
  });
}

void Engine::deliver(const std::shared_ptr<Watcher>& watcher, std::vector<WatchUpdate> updates,
                     std::function<void()> consumed) {
  executor_([weak = weak_from_this(), watcher, updates = std::move(updates), consumed = std::move(consumed)]() mutable {
    for (WatchUpdate& update : updates) {
      // A copy, because the callback may cancel its own watch.
      if (const auto callback = watcher->update) (*callback)(std::move(update));
    }
    if (const auto engine = weak.lock()) engine->loop_.post(std::move(consumed));
  });
}

void Engine::set_endpoints(std::vector<std::string> endpoints) {
  loop_.post([this, endpoints = std::move(endpoints)] { endpoints_.set(endpoints); });
}

void Engine::use_credentials(EtcdAccess access) {
  loop_.post([this, access = std::move(access)] { endpoints_.use_credentials(access); });
}

void Engine::set_upkeep(bool on) {
  loop_.post([this, on] { upkeep_.set(on); });
}

std::string Engine::problem() const {
  const std::lock_guard lock(mutex_);
  return problem_;
}

void Engine::changed() {
  note_health();
  calls_.pump();
  for (const auto& [id, watch] : watches_) watch->open();
}

void Engine::note_health() {
  std::string problem = calls_.damage();
  if (problem.empty()) problem = endpoints_.problem();
  const std::lock_guard lock(mutex_);
  problem_ = std::move(problem);
}

// Bounded: the calls that are under way, then the lease, then nothing is waited for.
void Engine::close() {
  std::promise<void> closed;
  loop_.post([this, &closed] { close_here([&closed] { closed.set_value(); }); });
  closed.get_future().wait();
  loop_.stop();
}

void Engine::close_here(std::function<void()> done) {
  upkeep_.set(false);
  for (const auto& [id, watch] : watches_) watch->cancel();
  watches_.clear();
  const auto revoke = [this, done = std::move(done)] {
    close_bound_.cancel();
    lease_.close(kCloseBound, [this, done] {
      endpoints_.close();
      done();
    });
  };
  // Called once: by the calls when they have ended, or instead of them.
  close_bound_ = loop_.run_after(kCloseBound, [this] { endpoints_.close(); });
  calls_.close(revoke);
}

class EtcdStore final : public Store {
 public:
  explicit EtcdStore(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  ~EtcdStore() override;

  void commit(Txn txn, std::function<void(TxnResult)> done) override;
  void read(std::string prefix, std::function<void(ReadResult)> done) override;
  WatchId watch(std::string prefix, std::uint64_t from_revision, std::function<void(WatchUpdate)> update) override;
  void cancel_watch(WatchId id) override;
  [[nodiscard]] Health health() const override;
  [[nodiscard]] std::string describe() const override;
  Engine& engine() { return *engine_; }

 private:
  std::shared_ptr<Engine> engine_;
  std::map<WatchId, std::shared_ptr<Watcher>> watchers_;
  WatchId last_watch_ = 0;
};

EtcdStore::~EtcdStore() {
  for (const auto& [id, watcher] : watchers_) watcher->update.reset();
  engine_->close();
}

void EtcdStore::commit(Txn txn, std::function<void(TxnResult)> done) {
  if (auto bad = out_of_bounds(txn)) {
    TxnResult result{Outcome::kRefused, Cause::kTooLarge, 0, "this transaction is not allowed: " + *bad};
    engine_->answer([done = std::move(done), result = std::move(result)] { done(result); });
    return;
  }
  engine_->commit(std::move(txn), std::move(done));
}

void EtcdStore::read(std::string prefix, std::function<void(ReadResult)> done) {
  if (prefix.size() > kKeyMax) {
    ReadResult result{false, 0, {}, "a prefix has at most " + std::to_string(kKeyMax) + " bytes"};
    engine_->answer([done = std::move(done), result = std::move(result)] { done(result); });
    return;
  }
  engine_->read(std::move(prefix), std::move(done));
}

WatchId EtcdStore::watch(std::string prefix, std::uint64_t from_revision, std::function<void(WatchUpdate)> update) {
  auto watcher = std::make_shared<Watcher>();
  watcher->prefix = std::move(prefix);
  watcher->from_revision = from_revision;
  watcher->update = std::make_shared<std::function<void(WatchUpdate)>>(std::move(update));
  watchers_[++last_watch_] = watcher;
  engine_->watch(last_watch_, std::move(watcher));
  return last_watch_;
}

void EtcdStore::cancel_watch(WatchId id) {
  const auto found = watchers_.find(id);
  if (found == watchers_.end()) return;
  found->second->update.reset();
  watchers_.erase(found);
  engine_->cancel_watch(id);
}

Health EtcdStore::health() const {
  std::string problem = engine_->problem();
  if (problem.empty()) return {};
  return {false, std::move(problem)};
}

std::string EtcdStore::describe() const {
  std::string text = "etcd:";
  const char* before = "";
  for (const std::string& endpoint : engine_->options().endpoints) text += std::exchange(before, ",") + endpoint;
  return text + engine_->options().key_prefix;
}

}  // namespace

Result<std::unique_ptr<Store>> open_etcd_store(const EtcdOptions& options, Executor executor) {
  auto access = load_etcd_access(options);
  if (!access) return tl::unexpected(access.error());
  if (options.key_prefix.empty()) {
    return fail(ErrorCode::kBadInput, "etcd: the store needs a key prefix of its own, such as \"/usblease/CLUSTER/\"");
  }
  return std::make_unique<EtcdStore>(std::make_shared<Engine>(std::move(*access), std::move(executor)));
}

Result<void> set_etcd_endpoints(Store& store, const std::vector<std::string>& endpoints) {
  auto* const etcd = dynamic_cast<EtcdStore*>(&store);
  if (etcd == nullptr) return {};
  if (auto checked = check_etcd_endpoints(endpoints); !checked) return checked;
  etcd->engine().set_endpoints(endpoints);
  return {};
}

Result<void> reload_etcd_credentials(Store& store) {
  auto* const etcd = dynamic_cast<EtcdStore*>(&store);
  if (etcd == nullptr) return {};
  auto access = load_etcd_access(etcd->engine().options());
  if (!access) return tl::unexpected(access.error());
  etcd->engine().use_credentials(std::move(*access));
  return {};
}

void set_etcd_upkeep(Store& store, bool on) {
  if (auto* const etcd = dynamic_cast<EtcdStore*>(&store)) etcd->engine().set_upkeep(on);
}

}  // namespace usblease::store
