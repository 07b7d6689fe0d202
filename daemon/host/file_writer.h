// Replaces one file durably, off the main loop: a temporary file beside it, fsync, rename, fsync of the directory.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::host {

// Blocking. Afterwards `name` in `directory_fd` holds `bytes`, durably, or an error says what failed and `name` holds
// what it held (or, when only the last fsync failed, either of both). kUnavailable: no room. The temporary file is
// NAME.new.
Result<void> replace_file(int directory_fd, const std::string& name, const std::string& bytes);

// One worker thread, one write at a time. All calls are on the main loop's thread.
class FileWriter {
 public:
  FileWriter(UniqueFd directory, std::string name);
  ~FileWriter();  // waits for the write that is under way; its callback never runs
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  // Only when the one before is done. `done` runs on the main loop.
  void write(std::string bytes, std::function<void(Result<void>)> done);

 private:
  void work();
  void finish(Result<void> result);

  const UniqueFd directory_;
  const std::string name_;
  std::function<void(Result<void>)> done_;  // main loop only; empty: idle
  std::shared_ptr<FileWriter*> self_;       // what posted results hold weakly
  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<std::string> job_;  // under mutex_
  bool stopping_ = false;           // under mutex_
  std::thread thread_;              // last: it uses all of the above
};

}  // namespace usblease::host
