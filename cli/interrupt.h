// Ctrl-C while a command runs: SIGINT becomes a descriptor to poll, so that a wait ends at once and in order.
#pragma once

#include <csignal>
#include <cstdint>

#include "common/fd.h"

namespace usblease::cli {

class Interrupt {
 public:
  // From here to the destructor SIGINT does not kill the process; the destructor restores what was before.
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  enum class Wake : std::uint8_t { kReady, kDeadline, kInterrupted };
  // Waits until `fd` is readable (fd < 0: for nothing), CLOCK_BOOTTIME is deadline_ns, or SIGINT came.
  Wake wait_readable(int fd, std::uint64_t deadline_ns);

  [[nodiscard]] bool caught() const { return caught_; }

 private:
  sigset_t before_{};
  UniqueFd signal_fd_;
  bool caught_ = false;
};

}  // namespace usblease::cli
