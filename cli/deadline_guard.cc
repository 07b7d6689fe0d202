#include "cli/deadline_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <new>
#include <utility>

#include "cli/process_tree.h"
#include "common/boottime.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kNsPerS = 1'000'000'000;
constexpr std::uint64_t kStrikeNs = 5 * kNsPerS;
constexpr int kLookAgainMs = 2;

bool is_alive(int pid_fd) {
  pollfd ended{pid_fd, POLLIN, 0};
  return pid_fd >= 0 && poll(&ended, 1, 0) == 0;
}

}  // namespace

// In memory of both processes.
struct DeadlineGuard::Shared {
  std::atomic<std::uint64_t> deadline_ns{0};
  std::atomic<pid_t> pid{0};  // set last: `cgroup` is complete
  std::atomic<bool> struck{false};
  std::atomic<bool> done{false};
  std::array<char, PATH_MAX> cgroup{};
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<pid_t>::is_always_lock_free);

// False: it was told to end. True: the deadline has passed, or its maker is dead.
bool DeadlineGuard::wait_for_deadline(const Shared& shared, int alive, int timer) {
  for (;;) {
    const std::uint64_t deadline_ns = shared.deadline_ns;
    if (boottime_now_ns() >= deadline_ns) return true;
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(deadline_ns / kNsPerS);
    when.it_value.tv_nsec = static_cast<long>(deadline_ns % kNsPerS);
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, nullptr);
    std::array<pollfd, 2> wanted{pollfd{alive, POLLIN, 0}, pollfd{timer, POLLIN, 0}};
    poll(wanted.data(), wanted.size(), -1);
    if (wanted[0].revents != 0) return !shared.done;
  }
}

// True: nothing is left to kill. `maker`: its pidfd.
bool DeadlineGuard::strike(const Shared& shared, pid_t maker_pid, int maker) {
  const pid_t pid = shared.pid;
  if (pid == 0) return true;  // has_struck() keeps it from starting
  const bool maker_lives = is_alive(maker);
  if (shared.cgroup[0] != '\0') {
    if (!kill_cgroup(shared.cgroup.data())) return false;
    if (!maker_lives) rmdir(shared.cgroup.data());
    return true;
  }
  (void)kill(-pid, SIGKILL);
  return !maker_lives || kill_descendants(maker_pid);
}

void DeadlineGuard::keep(Shared& shared, int alive, pid_t maker_pid) {
  setsid();
  prctl(PR_SET_NAME, "usblease-guard");  // so that `killall usblease` is not meant for it
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  // Whoever waits for the end of this program's output must not wait for this process.
  if (dup2(alive, 0) < 0 || close_range(1, ~0U, 0) != 0 || chdir("/") != 0) _exit(1);
  const auto maker = static_cast<int>(syscall(SYS_pidfd_open, maker_pid, 0));
  const int timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
  // Without its timer it is early rather than late.
  if (timer >= 0 && !wait_for_deadline(shared, 0, timer)) _exit(0);
  shared.struck = true;
  const std::uint64_t until_ns = boottime_now_ns() + kStrikeNs;
  while (!strike(shared, maker_pid, maker) && boottime_now_ns() < until_ns) poll(nullptr, 0, kLookAgainMs);
  _exit(0);
}

Result<DeadlineGuard> DeadlineGuard::start(std::uint64_t deadline_ns) {
  const auto failed = [] { return fail_errno("cannot start a guard of the deadline", errno); };
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return failed();
  auto* shared = new (memory) Shared;  // NOLINT(cppcoreguidelines-owning-memory): unmapped, not deleted
  shared->deadline_ns = deadline_ns;
  std::array<int, 2> ends{};
  DeadlineGuard guard(shared, UniqueFd());
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return failed();
  const UniqueFd alive(ends[0]);
  guard.alive_.reset(ends[1]);
  // It must not come back as a child of this process, which takes all of its children for the command's.
  prctl(PR_SET_CHILD_SUBREAPER, 0);
  const pid_t maker_pid = getpid();
  const pid_t between = fork();
  if (between < 0) return failed();
  if (between == 0) {
    const pid_t pid = fork();
    if (pid == 0) keep(*shared, alive.get(), maker_pid);
    _exit(pid < 0 ? errno : 0);
  }
  int status = 0;
  while (waitpid(between, &status, 0) < 0 && errno == EINTR) continue;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return fail_errno("cannot start a guard of the deadline", WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
  return guard;
}

DeadlineGuard::DeadlineGuard(DeadlineGuard&& other) noexcept
    : shared_(std::exchange(other.shared_, nullptr)), alive_(std::move(other.alive_)) {}

DeadlineGuard::~DeadlineGuard() {
  if (shared_ == nullptr) return;
  shared_->done = true;
  alive_.reset();
  munmap(shared_, sizeof(Shared));
}

void DeadlineGuard::set_deadline(std::uint64_t deadline_ns) {
  if (deadline_ns > shared_->deadline_ns) shared_->deadline_ns = deadline_ns;
}

Result<void> DeadlineGuard::take_charge(pid_t pid, const std::string& cgroup) {
  if (cgroup.size() >= shared_->cgroup.size()) return fail(ErrorCode::kInternal, cgroup + ": the path is too long");
  std::memcpy(shared_->cgroup.data(), cgroup.c_str(), cgroup.size() + 1);
  shared_->pid = pid;
  return {};
}

bool DeadlineGuard::has_struck() const { return shared_->struck; }

}  // namespace usblease::cli
