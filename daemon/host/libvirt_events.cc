#include "daemon/host/libvirt_events.h"

#include <glib-unix.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "daemon/host/libvirt_ptr.h"
#include "daemon/host/worker_thread.h"

namespace usblease::host {
namespace {

GIOCondition to_condition(int events) {
  int condition = 0;
  if ((events & VIR_EVENT_HANDLE_READABLE) != 0) condition |= G_IO_IN;
  if ((events & VIR_EVENT_HANDLE_WRITABLE) != 0) condition |= G_IO_OUT;
  if ((events & VIR_EVENT_HANDLE_ERROR) != 0) condition |= G_IO_ERR;
  if ((events & VIR_EVENT_HANDLE_HANGUP) != 0) condition |= G_IO_HUP;
  return static_cast<GIOCondition>(condition);
}

int to_events(GIOCondition condition) {
  int events = 0;
  if ((condition & G_IO_IN) != 0) events |= VIR_EVENT_HANDLE_READABLE;
  if ((condition & G_IO_OUT) != 0) events |= VIR_EVENT_HANDLE_WRITABLE;
  if ((condition & (G_IO_ERR | G_IO_NVAL)) != 0) events |= VIR_EVENT_HANDLE_ERROR;
  if ((condition & G_IO_HUP) != 0) events |= VIR_EVENT_HANDLE_HANGUP;
  return events;
}

// A handle (fd >= 0) or a timeout that libvirt registered.
struct Entry {
  int id = 0;
  int fd = -1;
  virEventHandleCallback on_handle = nullptr;
  virEventTimeoutCallback on_timeout = nullptr;
  void* opaque = nullptr;
  virFreeCallback free_opaque = nullptr;
  GSource* source = nullptr;  // null: disabled. Under the loop's mutex.
  bool removed = false;       // likewise

  // Runs on the loop's thread, after removal and outside of every callback of this entry: libvirt may hold locks in
  // remove that free_opaque takes.
  ~Entry() {
    if (free_opaque != nullptr) free_opaque(opaque);
  }
};
using EntryPtr = std::shared_ptr<Entry>;

class EventLoop {
 public:
  EventLoop() : context_(g_main_context_new()) {
    start_worker("libvirt-events", [context = context_] {
      for (;;) g_main_context_iteration(context, TRUE);
    }).detach();
  }

  int add(const EntryPtr& entry, int events_or_interval_ms) {
    const std::lock_guard lock(mutex_);
    entry->id = next_id_++;
    arm(entry, events_or_interval_ms);
    entries_[entry->id] = entry;
    return entry->id;
  }

  void update(int id, int events_or_interval_ms) {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) return;
    disarm(*found->second);
    arm(found->second, events_or_interval_ms);
  }

  int remove(int id) {
    EntryPtr entry;
    {
      const std::lock_guard lock(mutex_);
      const auto found = entries_.find(id);
      if (found == entries_.end()) return -1;
      entry = std::move(found->second);
      entries_.erase(found);
      disarm(*entry);
      entry->removed = true;
    }
    drop_later(std::move(entry));
    return 0;
  }

 private:
  static bool is_removed(const EntryPtr& entry);

  static void free_reference(gpointer data) { const std::unique_ptr<EntryPtr> owner(static_cast<EntryPtr*>(data)); }

  // A reference for GLib, given back by free_reference.
  static EntryPtr* reference(const EntryPtr& entry) { return std::make_unique<EntryPtr>(entry).release(); }

  static gboolean handle_ready(gint fd, GIOCondition condition, gpointer data) {
    const EntryPtr entry = *static_cast<EntryPtr*>(data);
    if (!is_removed(entry)) entry->on_handle(entry->id, fd, to_events(condition), entry->opaque);
    return G_SOURCE_CONTINUE;
  }

  static gboolean timeout_over(gpointer data) {
    const EntryPtr entry = *static_cast<EntryPtr*>(data);
    if (!is_removed(entry)) entry->on_timeout(entry->id, entry->opaque);
    return G_SOURCE_CONTINUE;
  }

  void arm(const EntryPtr& entry, int events_or_interval_ms) {
    if (entry->fd >= 0) {
      if (events_or_interval_ms == 0) return;
      entry->source = g_unix_fd_source_new(entry->fd, to_condition(events_or_interval_ms));
      g_source_set_callback(entry->source, G_SOURCE_FUNC(handle_ready), reference(entry), free_reference);
    } else {
      if (events_or_interval_ms < 0) return;
      entry->source = g_timeout_source_new(static_cast<guint>(events_or_interval_ms));
      g_source_set_callback(entry->source, timeout_over, reference(entry), free_reference);
    }
    g_source_attach(entry->source, context_);
  }

  // The source's reference to the entry may go here, but never the last one: the caller has another.
  static void disarm(Entry& entry) {
    GSource* const source = std::exchange(entry.source, nullptr);
    if (source == nullptr) return;
    g_source_destroy(source);
    g_source_unref(source);
  }

  void drop_later(EntryPtr entry) {
    GSource* const source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(
        source, [](gpointer) -> gboolean { return G_SOURCE_REMOVE; }, reference(entry), free_reference);
    entry.reset();
    g_source_attach(source, context_);
    g_source_unref(source);
  }

  GMainContext* const context_;
  std::mutex mutex_;
  std::map<int, EntryPtr> entries_;
  int next_id_ = 1;

  friend EventLoop& event_loop();
};

// libvirt's registration is one a process and for ever, so this is too: never destroyed.
EventLoop& event_loop() {
  static EventLoop* const loop = std::make_unique<EventLoop>().release();
  return *loop;
}

bool EventLoop::is_removed(const EntryPtr& entry) {
  const std::lock_guard lock(event_loop().mutex_);
  return entry->removed;
}

EntryPtr new_entry(void* opaque, virFreeCallback free_opaque) {
  auto entry = std::make_shared<Entry>();
  entry->opaque = opaque;
  entry->free_opaque = free_opaque;
  return entry;
}

int add_handle(int fd, int events, virEventHandleCallback callback, void* opaque, virFreeCallback free_opaque) {
  auto entry = new_entry(opaque, free_opaque);
  entry->fd = fd;
  entry->on_handle = callback;
  return event_loop().add(entry, events);
}

int add_timeout(int interval_ms, virEventTimeoutCallback callback, void* opaque, virFreeCallback free_opaque) {
  auto entry = new_entry(opaque, free_opaque);
  entry->on_timeout = callback;
  return event_loop().add(entry, interval_ms);
}

void update(int id, int events_or_interval_ms) { event_loop().update(id, events_or_interval_ms); }
int remove(int id) { return event_loop().remove(id); }
void stay_silent(void* /*data*/, virErrorPtr /*error*/) {}

}  // namespace

Result<void> prepare_libvirt() {
  static const Result<void> prepared = []() -> Result<void> {
    virSetErrorFunc(nullptr, stay_silent);
    virEventRegisterImpl(add_handle, update, remove, add_timeout, update, remove);
    if (virInitialize() != 0) return tl::unexpected(libvirt_error("cannot initialise libvirt"));
    return {};
  }();
  return prepared;
}

}  // namespace usblease::host
