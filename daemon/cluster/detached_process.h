// A process that outlives us and is found again: started in a session of its own, known by its pid together with its
// start time, so that a pid that was used anew is never taken for it. For the main loop's thread only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "common/main_loop.h"

namespace usblease::cluster {

struct ProcessId {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;  // /proc/PID/stat, field 22: since boot, so a file must be of this boot
  bool operator==(const ProcessId&) const = default;
};

struct DetachedCommand {
  std::string path;                      // absolute
  std::vector<std::string> arguments;    // without the program's name
  std::vector<std::string> environment;  // "NAME=VALUE": the whole of it
  std::string log_path;                  // stdout and stderr are appended there, mode 0600
};

// Starts it (two forks, so that it is nobody's child here). It is known to run the program when this returns;
// kInternal: why it could not be executed.
Result<ProcessId> start_detached(const DetachedCommand& command);

// The start time of a process that runs; nullopt: there is none.
std::optional<std::uint64_t> start_ticks_of(pid_t pid);

// One such process, watched.
class DetachedProcess {
 public:
  // kNotFound: it has ended, or another process has its pid now, or that one does not run `exe`.
  static Result<DetachedProcess> open(const ProcessId& id, const std::string& exe);

  // Calls `ended` once, from the main loop, when it has ended. Not after this object is destroyed.
  void watch(std::function<void()> ended);
  // To exactly this process.
  Result<void> signal(int number) const;
  [[nodiscard]] const ProcessId& id() const { return id_; }

 private:
  DetachedProcess(ProcessId id, UniqueFd pidfd) : id_(id), pidfd_(std::move(pidfd)) {}
  ProcessId id_;
  UniqueFd pidfd_;
  SourceHandle source_;
};

// "BOOT_ID PID START_TICKS" in one file, durably enough to find the process again after a restart of ours.
Result<void> save_process_id(const std::string& path, const std::string& boot_id, const ProcessId& id);
// nullopt: no file, not well formed, or of another boot.
std::optional<ProcessId> load_process_id(const std::string& path, const std::string& boot_id);

}  // namespace usblease::cluster
