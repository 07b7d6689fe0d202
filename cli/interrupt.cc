#include "cli/interrupt.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>

#include "common/boottime.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

int poll_timeout_ms(std::uint64_t deadline_ns) {
  const std::uint64_t now_ns = boottime_now_ns();
  if (now_ns >= deadline_ns) return 0;
  const std::uint64_t left_ns = deadline_ns - now_ns;
  return static_cast<int>(std::min<std::uint64_t>(left_ns / kNsPerMs + 1, INT_MAX));
}

}  // namespace

Interrupt::Interrupt() {
  sigset_t only_int;
  sigemptyset(&only_int);
  sigaddset(&only_int, SIGINT);
  pthread_sigmask(SIG_BLOCK, &only_int, &before_);
  // Without a descriptor (no memory, no slot) Ctrl-C would do nothing at all: then rather let it kill.
  signal_fd_.reset(signalfd(-1, &only_int, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd_) pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

Interrupt::~Interrupt() {
  // A SIGINT that nobody read belongs to the command that ends here, not to the next one.
  signalfd_siginfo info{};
  while (signal_fd_ && read(signal_fd_.get(), &info, sizeof info) > 0) {
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

Interrupt::Wake Interrupt::wait_readable(int fd, std::uint64_t deadline_ns) {
  for (;;) {
    std::array<pollfd, 2> waiting{pollfd{fd, POLLIN, 0}, pollfd{signal_fd_.get(), POLLIN, 0}};
    const int timeout_ms = poll_timeout_ms(deadline_ns);
    const int count = poll(waiting.data(), waiting.size(), timeout_ms);
    if (count > 0 && waiting[1].revents != 0) {
      caught_ = true;
      return Wake::kInterrupted;
    }
    if (count > 0 && waiting[0].revents != 0) return Wake::kReady;
    if (boottime_now_ns() >= deadline_ns) return Wake::kDeadline;
  }
}

}  // namespace usblease::cli
