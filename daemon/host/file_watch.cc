#include "daemon/host/file_watch.h"

#include <utility>

#include "common/glib_ptr.h"
#include "common/log.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kTogetherNs = 50'000'000;

}  // namespace

FileWatch::FileWatch(const std::string& path, std::function<void()> changed) : changed_(std::move(changed)) {
  const GPtr<GFile, g_object_unref> file(g_file_new_for_path(path.c_str()));
  GErrorOut error;
  monitor_ = g_file_monitor_file(file.get(), G_FILE_MONITOR_NONE, nullptr, error.out());
  if (monitor_ == nullptr) {
    log::warning("cannot watch a file; what changes in it is seen when usbleased starts again",
                 {{"PATH", path}, {"ERROR", error.message()}});
    return;
  }
  g_signal_connect(monitor_, "changed", G_CALLBACK(on_changed), this);
}

FileWatch::~FileWatch() {
  if (monitor_ == nullptr) return;
  g_signal_handlers_disconnect_by_data(monitor_, this);
  g_object_unref(monitor_);
}

void FileWatch::on_changed(GFileMonitor* /*monitor*/, GFile* /*file*/, GFile* /*other*/, GFileMonitorEvent /*event*/,
                           gpointer self) {
  auto* const watch = static_cast<FileWatch*>(self);
  watch->later_ = run_after(kTogetherNs, [watch] { watch->changed_(); });
}

}  // namespace usblease::host
