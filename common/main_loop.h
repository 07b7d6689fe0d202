// The one way to run a timer, to wait for a descriptor, and to reach the main loop from another thread.
// All of them use the default GMainContext; all but post() are for its thread only. A handle cancels when it dies.
// No callback may run the main loop itself.
#pragma once

#include <glib.h>

#include <cstdint>
#include <functional>

namespace usblease {

// Owner of one attached GSource.
class SourceHandle {
 public:
  SourceHandle() = default;
  explicit SourceHandle(GSource* owned) : source_(owned) {}
  SourceHandle(SourceHandle&& other) noexcept;
  SourceHandle& operator=(SourceHandle&& other) noexcept;
  SourceHandle(const SourceHandle&) = delete;
  SourceHandle& operator=(const SourceHandle&) = delete;
  ~SourceHandle() { cancel(); }
  void cancel();
  explicit operator bool() const { return source_ != nullptr; }

 private:
  GSource* source_ = nullptr;
};

// Runs `callback` once, `delay_ns` from now on CLOCK_BOOTTIME (timerfd: right across suspend). After it ran, the
// handle is spent and may be assigned again, also from inside the callback.
[[nodiscard]] SourceHandle run_after(std::uint64_t delay_ns, std::function<void()> callback);

// Calls `callback` with the ready condition for as long as the handle lives. `fd` must outlive the handle.
[[nodiscard]] SourceHandle watch_fd(int fd, GIOCondition condition, std::function<void(GIOCondition)> callback);

// From any thread: `callback` runs on the main loop, in the order of the calls of one thread.
void post(std::function<void()> callback);

}  // namespace usblease
