// Tells when a file is written, made or removed, whether or not it, or its directory, is there yet.
#pragma once

#include <gio/gio.h>

#include <functional>
#include <memory>
#include <string>

#include "common/main_loop.h"

namespace usblease::host {

class FileWatch {
 public:
  // Calls `changed` on the main loop, once for what comes together. A file whose directory is made later is noticed
  // within some seconds. When the system cannot watch, that is logged, and nothing is ever told.
  FileWatch(const std::string& path, std::function<void()> changed);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

 private:
  static void on_changed(GFileMonitor* monitor, GFile* file, GFile* other, GFileMonitorEvent event, gpointer self);

  std::function<void()> changed_;
  SourceHandle later_;
  GFileMonitor* monitor_ = nullptr;
};

}  // namespace usblease::host
