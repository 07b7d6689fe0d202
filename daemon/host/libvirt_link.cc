#include "daemon/host/libvirt_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "daemon/host/libvirt_events.h"
#include "daemon/host/worker_thread.h"

namespace usblease::host {

std::shared_ptr<LibvirtLink> LibvirtLink::make(std::string uri, std::string run_dir, LinkEvents events) {
  return std::shared_ptr<LibvirtLink>(new LibvirtLink(std::move(uri), std::move(run_dir), std::move(events)));
}

void LibvirtLink::start() {
  thread_ = start_worker("libvirt-link", [self = shared_from_this()] { self->run(); });
}

void LibvirtLink::request_stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

void LibvirtLink::stop() {
  request_stop();
  if (!thread_.joinable()) return;
  std::unique_lock lock(mutex_);
  const bool ended = changed_.wait_for(lock, std::chrono::milliseconds(kStopWaitMs), [this] { return ended_; });
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

std::shared_ptr<LibvirtSession> LibvirtLink::session(std::uint64_t generation) {
  const std::lock_guard lock(mutex_);
  return generation == generation_ ? session_ : nullptr;
}

void LibvirtLink::give_up(std::uint64_t generation, std::string why) {
  const std::lock_guard lock(mutex_);
  if (generation != generation_ || !broken_.empty()) return;
  broken_ = std::move(why);
  changed_.notify_all();
}

Result<std::unique_ptr<LibvirtSession>> LibvirtLink::borrow() {
  for (;;) {
    std::unique_ptr<LibvirtSession> session;
    {
      const std::lock_guard lock(mutex_);
      if (!session_) return fail(ErrorCode::kUnavailable, "libvirt is away");
      if (idle_.empty()) break;
      session = std::move(idle_.back());
      idle_.pop_back();
    }
    if (session->is_alive()) return session;
  }
  return LibvirtSession::open(uri_, run_dir_, removals_, std::nullopt);
}

void LibvirtLink::give_back(std::unique_ptr<LibvirtSession> session) {
  if (!session->is_alive()) return;
  const std::lock_guard lock(mutex_);
  if (session_ && idle_.size() < kIdleMax) idle_.push_back(std::move(session));
}

void LibvirtLink::settle() {
  const std::lock_guard lock(mutex_);
  backoff_ms_ = kBackoffLeastMs;
}

Result<void> LibvirtLink::connect() {
  if (auto prepared = prepare_libvirt(); !prepared) return prepared;
  std::uint64_t generation = 0;
  {
    const std::lock_guard lock(mutex_);
    generation = ++generation_;
    broken_.clear();
  }
  SessionEvents events;
  // Held weakly: libvirt may give back its reference to these only after we are gone.
  const std::weak_ptr<LibvirtLink> weak = weak_from_this();
  events.guest_changed = [weak, generation](std::string uuid) {
    if (const auto self = weak.lock()) self->events_.guest_changed(generation, std::move(uuid));
  };
  events.device_removed = [weak, generation](std::string uuid, std::string device) {
    if (const auto self = weak.lock()) self->events_.device_removed(generation, std::move(uuid), std::move(device));
  };
  events.broken = [weak, generation, uri = uri_](const std::string& why) {
    if (const auto self = weak.lock()) self->give_up(generation, "the connection to " + uri + " broke: " + why);
  };
  auto session = LibvirtSession::open(uri_, run_dir_, removals_, std::move(events));
  if (!session) return tl::unexpected(session.error());
  {
    const std::lock_guard lock(mutex_);
    session_ = std::move(*session);
  }
  events_.up(generation);
  return {};
}

void LibvirtLink::wait_until_broken() {
  // Closed outside of the mutex.
  std::shared_ptr<LibvirtSession> old;
  std::vector<std::unique_ptr<LibvirtSession>> idle;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || !broken_.empty(); });
  old = std::move(session_);
  idle = std::exchange(idle_, {});
  lock.unlock();
}

bool LibvirtLink::wait_before_retry() {
  std::unique_lock lock(mutex_);
  const std::uint64_t wait_ms = backoff_ms_;
  backoff_ms_ = std::min(backoff_ms_ * 2, kBackoffMostMs);
  return !changed_.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return stopping_; });
}

void LibvirtLink::run() {
  bool told_down = false;
  do {
    const auto connected = connect();
    std::string why = connected ? "" : connected.error().message;
    if (connected) {
      told_down = false;
      wait_until_broken();
      const std::lock_guard lock(mutex_);
      why = broken_;
    }
    if (why.empty()) break;  // asked to stop
    if (!std::exchange(told_down, true)) events_.down(why);
  } while (wait_before_retry());
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

}  // namespace usblease::host
