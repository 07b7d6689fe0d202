// A second process that ends a command at its deadline when the first one cannot: it is stopped, or was killed. It
// does nothing else, has a session of its own (nothing that is typed at a terminal reaches it), and ends with the
// process that made it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::cli {

class DeadlineGuard {
 public:
  // Begins to wait for `deadline_ns` (CLOCK_BOOTTIME). Before any child that it is to end.
  static Result<DeadlineGuard> start(std::uint64_t deadline_ns);
  DeadlineGuard(DeadlineGuard&& other) noexcept;
  DeadlineGuard& operator=(DeadlineGuard&&) = delete;
  // Ends the guard, and nothing else.
  ~DeadlineGuard();

  // Later ones only count.
  void set_deadline(std::uint64_t deadline_ns);
  // What it ends from now on: the cgroup in the directory `cgroup`, if there is one; else the process group of `pid`
  // and all descendants of this process. An error: the name is too long.
  Result<void> take_charge(pid_t pid, const std::string& cgroup);
  // Whether the deadline has been enforced: nothing may be started any more. Together with take_charge() before a
  // start it leaves no gap: one of the two processes sees what the other did.
  [[nodiscard]] bool has_struck() const;

 private:
  struct Shared;
  DeadlineGuard(Shared* shared, UniqueFd alive) : shared_(shared), alive_(std::move(alive)) {}
  static bool wait_for_deadline(const Shared& shared, int alive, int timer);
  [[noreturn]] static void keep(Shared& shared, int alive, pid_t maker_pid);
  static bool strike(const Shared& shared, pid_t maker_pid, int maker);

  Shared* shared_;
  UniqueFd alive_;  // closed by the kernel if this process ends
};

}  // namespace usblease::cli
