#include "daemon/store/etcd_loop.h"

#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <signal.h>

#include <memory>

#include "common/log.h"

namespace usblease::store {
namespace {

struct Step {
  std::function<void(bool)> done;
};

// gRPC makes threads when it is first used and they keep the mask of that moment: signals are the main thread's.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

// Its own words on stderr would say again what the calls' errors say.
void log_of_grpc(gpr_log_func_args* args) { log::debug(args->message, {{"PEER", "gRPC"}}); }

}  // namespace

EtcdTimer& EtcdTimer::operator=(EtcdTimer&& other) noexcept {
  if (this == &other) return *this;
  cancel();
  loop_ = std::exchange(other.loop_, nullptr);
  key_ = other.key_;
  return *this;
}

void EtcdTimer::cancel() {
  if (loop_ != nullptr) std::exchange(loop_, nullptr)->timers_.erase(key_);
}

EtcdLoop::EtcdLoop() {
  const SignalsBlocked blocked;
  gpr_set_log_function(log_of_grpc);
  thread_ = std::thread([this] { run(); });
}

void EtcdLoop::post(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  posted_.push_back(std::move(work));
  wake();
}

void EtcdLoop::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake();
  }
  thread_.join();
}

// With the lock. The alarm is set anew only after its last event was taken from the queue.
void EtcdLoop::wake() {
  if (std::exchange(waking_, true)) return;
  alarm_.Set(&queue_, gpr_now(GPR_CLOCK_MONOTONIC), this);
}

EtcdTimer EtcdLoop::run_at(Clock::time_point when, std::function<void()> callback) {
  const EtcdTimer::Key key{when, ++last_timer_};
  timers_.emplace(key, std::move(callback));
  return {*this, key};
}

void* EtcdLoop::step(std::function<void(bool)> done) {
  ++outstanding_;
  return std::make_unique<Step>(Step{std::move(done)}).release();
}

void EtcdLoop::run() {
  bool shut_down = false;
  for (;;) {
    void* tag = nullptr;
    bool ok = false;
    switch (queue_.AsyncNext(&tag, &ok, next_timer())) {
      case grpc::CompletionQueue::SHUTDOWN:
        return;
      case grpc::CompletionQueue::TIMEOUT:
        break;
      case grpc::CompletionQueue::GOT_EVENT:
        complete(tag, ok);
        break;
    }
    run_timers();
    if (!shut_down && finished()) {
      shut_down = true;
      queue_.Shutdown();
    }
  }
}

void EtcdLoop::complete(void* tag, bool ok) {
  if (tag == this) return run_posted();
  const std::unique_ptr<Step> step(static_cast<Step*>(tag));
  --outstanding_;
  step->done(ok);
}

void EtcdLoop::run_posted() {
  std::vector<std::function<void()>> works;
  {
    const std::lock_guard lock(mutex_);
    waking_ = false;
    works.swap(posted_);
  }
  for (const auto& work : works) work();
}

void EtcdLoop::run_timers() {
  const auto now = Clock::now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    // Out of the map first: it may set itself again.
    const auto timer = timers_.extract(timers_.begin());
    timer.mapped()();
  }
}

bool EtcdLoop::finished() {
  const std::lock_guard lock(mutex_);
  return stopping_ && !waking_ && posted_.empty() && outstanding_ == 0;
}

gpr_timespec EtcdLoop::next_timer() const {
  if (timers_.empty()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const auto wait = timers_.begin()->first.first - Clock::now();
  const auto wait_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(wait).count();
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(wait_ns, GPR_TIMESPAN));
}

}  // namespace usblease::store
