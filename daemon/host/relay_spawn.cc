#include "daemon/host/relay_spawn.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

#include "daemon/relay/invocation.h"

namespace usblease::host {
namespace {

constexpr int kExecFailed = 127;

// Everything that the child needs is made before the fork: between fork and exec of a process that has other threads,
// only what signal-safety(7) lists may be called.
struct ChildPlan {
  std::array<int, 5> sources{};  // for 0, 1, 3, 4, 5; each of them is greater than 5
  char* const* argv = nullptr;
};
constexpr std::array<int, 5> kTargets = {STDIN_FILENO, STDOUT_FILENO, relay::kGuestFd, relay::kEndpointFd,
                                         relay::kControlFd};

[[noreturn]] void run_child(const ChildPlan& plan) {
  constexpr char kProblem[] = "usbleased: cannot execute the relay; check relay_path in usbleased.conf\n";
  for (std::size_t i = 0; i < kTargets.size(); ++i) {
    if (dup2(plan.sources[i], kTargets[i]) < 0) _exit(kExecFailed);
  }
  if (close_range(relay::kControlFd + 1, ~0U, 0) != 0) _exit(kExecFailed);
  for (int number = 1; number < NSIG; ++number) {
    if (number != SIGKILL && number != SIGSTOP) (void)signal(number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execv(plan.argv[0], plan.argv);
  if (write(STDERR_FILENO, kProblem, sizeof kProblem - 1) < 0) _exit(kExecFailed);
  _exit(kExecFailed);
}

// A copy above all targets, so that no dup2 in the child overwrites what a later one still needs.
Result<UniqueFd> move_up(const UniqueFd& fd) {
  UniqueFd copy(fcntl(fd.get(), F_DUPFD_CLOEXEC, relay::kControlFd + 1));
  if (!copy) return fail_errno("cannot duplicate a descriptor for the relay", errno);
  return copy;
}

Result<void> fork_twice(const ChildPlan& plan) {
  const pid_t child = fork();
  if (child < 0) return fail_errno("cannot fork for the relay", errno);
  if (child == 0) {
    if (setsid() < 0) _exit(kExecFailed);
    const pid_t grandchild = _Fork();  // fork(2) without the handlers of pthread_atfork(3), which are not signal-safe
    if (grandchild == 0) run_child(plan);
    _exit(grandchild < 0 ? kExecFailed : 0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno("cannot wait for the fork of the relay", errno);
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return fail(ErrorCode::kInternal, "the second fork for the relay failed; is a limit of processes reached?");
  }
  return {};
}

}  // namespace

Result<void> spawn_relay_process(const std::vector<std::string>& arguments, RelayDescriptors descriptors) {
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null) return fail_errno("cannot open /dev/null", errno);
  std::array<UniqueFd, kTargets.size()> copies;
  const std::array<const UniqueFd*, kTargets.size()> originals = {&null, &null, &descriptors.guest,
                                                                  &descriptors.endpoint, &descriptors.listener};
  ChildPlan plan;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    auto copy = move_up(*originals[i]);
    if (!copy) return tl::unexpected(copy.error());
    copies[i] = std::move(*copy);
    plan.sources[i] = copies[i].get();
  }
  std::vector<std::string> owned = arguments;
  std::vector<char*> argv;
  argv.reserve(owned.size() + 1);
  for (std::string& argument : owned) argv.push_back(argument.data());
  argv.push_back(nullptr);
  plan.argv = argv.data();
  return fork_twice(plan);
}

}  // namespace usblease::host
