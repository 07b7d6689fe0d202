// Which process is which guest's QEMU, and whether it still lives.
//
// libvirt's API does not tell QEMU's PID. Its driver writes RUN_DIR/NAME.pid from the process that becomes QEMU, before
// exec, into a directory that only root writes, and leaves a write lock (fcntl) on the file to that process for life.
// So the kernel itself says who holds the lock: that is not a claim of the process, it ends with the process, and a PID
// that was used again cannot have it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::host {

class GuestProcess {
 public:
  // kNotFound: there is no such process.
  static Result<GuestProcess> open(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  // With the PID it names one process of this boot; survives our restart.
  [[nodiscard]] std::uint64_t start_ticks() const { return start_ticks_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  [[nodiscard]] bool alive() const;

 private:
  friend Result<GuestProcess> verify_peer(int, const std::string&, const std::string&, const std::string&);
  static Result<GuestProcess> adopt(pid_t pid, UniqueFd pidfd);
  GuestProcess(pid_t pid, std::uint64_t start_ticks, UniqueFd pidfd)
      : pid_(pid), start_ticks_(start_ticks), pidfd_(std::move(pidfd)) {}

  pid_t pid_;
  std::uint64_t start_ticks_;
  UniqueFd pidfd_;
};

// The QEMU of the guest, by libvirt's PID file in `run_dir`. kNotFound: it does not run; kRefused: the file is not what
// libvirt writes, or nobody holds its lock.
Result<GuestProcess> qemu_of(const std::string& run_dir, const std::string& guest_name);

// The process `pid` is the QEMU of this guest: the lock's holder, named in the PID file, alive after both were
// compared, and its command line carries -uuid UUID. kRefused says why not. `pid` alone may have been used again since
// it was learned: prefer verify_peer.
Result<GuestProcess> is_qemu_of(pid_t pid, const std::string& run_dir, const std::string& guest_name,
                                const std::string& guest_uuid);

// The same for the process that connected to this Unix socket: the kernel hands out a pidfd of it (SO_PEERPIDFD, Linux
// 6.5), so that its PID cannot have been used again. Older kernels: SO_PEERCRED, where a peer that died while its PID
// went to this guest's QEMU would pass; it would have to hand the socket to somebody first, and then the PIDs to wrap
// around to exactly that one.
Result<GuestProcess> verify_peer(int socket, const std::string& run_dir, const std::string& guest_name,
                                 const std::string& guest_uuid);

// The number that a process has for itself: another than ours in a PID namespace below. 0: it cannot be told.
pid_t pid_for_itself(pid_t pid);

// Calls `callback` once, on the main loop, when the process has ended; never when destroyed before.
class ExitWatch {
 public:
  ExitWatch() = default;

 private:
  friend Result<ExitWatch> watch_exit(int pidfd, std::function<void()> callback);
  struct State;
  std::shared_ptr<State> state_;
};

// `pidfd` stays the caller's.
Result<ExitWatch> watch_exit(int pidfd, std::function<void()> callback);

}  // namespace usblease::host
