// A command and everything that it starts, so that all of it can be ended: a cgroup (v2) of its own where one can be
// made, else a process group. Either way what outlives its parents comes to this process (PR_SET_CHILD_SUBREAPER), so
// that nothing is overlooked. Should this process itself be killed or stopped, a guard ends it all (deadline_guard.h);
// the command itself the kernel does, when its parent dies (PR_SET_PDEATHSIG).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli/deadline_guard.h"
#include "common/error.h"
#include "common/fd.h"

namespace usblease::cli {

class CommandGroup {
 public:
  // `words`: the program, looked for in PATH, and its arguments. `environment` is added to this process's. kNotFound:
  // there is no such program; kRefused: it cannot be executed. `guard` has charge of it from the beginning, and must
  // outlive it; once that has struck, nothing begins to run.
  static Result<CommandGroup> start(const std::vector<std::string>& words,
                                    const std::map<std::string, std::string>& environment, DeadlineGuard& guard);
  CommandGroup(CommandGroup&&) noexcept = default;
  CommandGroup& operator=(CommandGroup&&) = delete;
  // Removes the cgroup, if nothing runs in it.
  ~CommandGroup();

  // Readable when the command itself has ended.
  [[nodiscard]] int fd() const { return pid_fd_.get(); }
  // To the command itself.
  void signal(int number) const;
  // With SIGKILL, all of it, and waits. False: something still runs at `until_ns` (CLOCK_BOOTTIME).
  bool kill_all(std::uint64_t until_ns);
  // Of the command itself, once it has ended: its own, or 128 and the number of the signal that ended it.
  [[nodiscard]] int exit_code() const { return exit_code_; }
  // Why there is no cgroup; empty: there is one.
  [[nodiscard]] const std::string& why_no_cgroup() const { return why_no_cgroup_; }

 private:
  CommandGroup() = default;
  Result<void> make_cgroup();
  Result<void> confine(pid_t pid);
  void kill_group() const;
  // True: no child is left, and the cgroup is empty.
  bool reap();

  std::string cgroup_;  // its directory; empty: a process group
  std::string why_no_cgroup_;
  pid_t pid_ = -1;
  UniqueFd pid_fd_;
  bool reaped_ = false;
  int exit_code_ = 0;
};

}  // namespace usblease::cli
