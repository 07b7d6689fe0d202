#include "common/main_loop.h"

#include <glib-unix.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "common/fd.h"

namespace usblease {
namespace {

struct Watch {
  UniqueFd owned;  // set for timers, whose descriptor is ours
  bool once;
  std::function<void(GIOCondition)> callback;
};

gboolean on_ready(gint /*fd*/, GIOCondition condition, gpointer data) {
  // The callback may destroy its own handle: keep the watch alive until it returns.
  const auto watch = *static_cast<std::shared_ptr<Watch>*>(data);
  watch->callback(condition);
  return watch->once ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

gboolean on_timeout(gpointer data) { return on_ready(-1, G_IO_IN, data); }

void free_watch(gpointer data) {
  const std::unique_ptr<std::shared_ptr<Watch>> owner(static_cast<std::shared_ptr<Watch>*>(data));
}

SourceHandle attach(GSource* source, GSourceFunc function, std::shared_ptr<Watch> watch) {
  // GLib owns a heap cell that holds our reference; free_watch gives it back.
  auto* cell = std::make_unique<std::shared_ptr<Watch>>(std::move(watch)).release();
  g_source_set_callback(source, function, cell, free_watch);
  g_source_attach(source, nullptr);
  return SourceHandle(source);
}

// Out of descriptors or memory, which clients can bring about: a timer that may be late after a suspend is better than
// a daemon that is gone.
SourceHandle attach_plain_timeout(std::uint64_t delay_ns, std::shared_ptr<Watch> watch) {
  constexpr std::uint64_t kNsPerMs = 1'000'000;
  const std::uint64_t delay_ms = std::min<std::uint64_t>((delay_ns + kNsPerMs - 1) / kNsPerMs, G_MAXUINT);
  GSource* source = g_timeout_source_new(static_cast<guint>(delay_ms));
  g_source_set_priority(source, G_PRIORITY_DEFAULT);
  return attach(source, on_timeout, std::move(watch));
}

gboolean run_posted(gpointer data) {
  (*static_cast<std::function<void()>*>(data))();
  return G_SOURCE_REMOVE;
}

void free_posted(gpointer data) {
  const std::unique_ptr<std::function<void()>> owner(static_cast<std::function<void()>*>(data));
}

}  // namespace

SourceHandle::SourceHandle(SourceHandle&& other) noexcept : source_(std::exchange(other.source_, nullptr)) {}

SourceHandle& SourceHandle::operator=(SourceHandle&& other) noexcept {
  if (this != &other) {
    cancel();
    source_ = std::exchange(other.source_, nullptr);
  }
  return *this;
}

void SourceHandle::cancel() {
  GSource* source = std::exchange(source_, nullptr);
  if (source == nullptr) return;
  g_source_destroy(source);
  g_source_unref(source);
}

SourceHandle run_after(std::uint64_t delay_ns, std::function<void()> callback) {
  auto watch = std::make_shared<Watch>();
  watch->once = true;
  watch->callback = [callback = std::move(callback)](GIOCondition /*ready*/) { callback(); };
  watch->owned.reset(timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!watch->owned) return attach_plain_timeout(delay_ns, std::move(watch));
  const std::uint64_t bounded_ns = std::max<std::uint64_t>(delay_ns, 1);  // 0 would disarm the timer
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(bounded_ns / 1'000'000'000);
  when.it_value.tv_nsec = static_cast<long>(bounded_ns % 1'000'000'000);
  if (timerfd_settime(watch->owned.get(), 0, &when, nullptr) != 0) g_error("timerfd_settime: %s", g_strerror(errno));
  GSource* source = g_unix_fd_source_new(watch->owned.get(), G_IO_IN);
  return attach(source, G_SOURCE_FUNC(on_ready), std::move(watch));
}

SourceHandle watch_fd(int fd, GIOCondition condition, std::function<void(GIOCondition)> callback) {
  auto watch = std::make_shared<Watch>();
  watch->once = false;
  watch->callback = std::move(callback);
  GSource* source = g_unix_fd_source_new(fd, condition);
  // GLib takes a source out of the poll set while its callback runs, so that a nested main loop does not call it again,
  // and wakes itself up for that: three system calls and one more turn of the loop. Nothing here nests main loops.
  g_source_set_can_recurse(source, TRUE);
  return attach(source, G_SOURCE_FUNC(on_ready), std::move(watch));
}

void post(std::function<void()> callback) {
  auto* cell = std::make_unique<std::function<void()>>(std::move(callback)).release();
  GSource* source = g_idle_source_new();
  g_source_set_priority(source, G_PRIORITY_DEFAULT);
  g_source_set_callback(source, run_posted, cell, free_posted);
  g_source_attach(source, nullptr);
  g_source_unref(source);
}

}  // namespace usblease
