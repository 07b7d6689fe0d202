#include "daemon/cluster/detached_process.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <string_view>

#include "common/text.h"

namespace usblease::cluster {
namespace {

constexpr int kExecFailed = 127;
constexpr std::size_t kStatBytesMax = 1024;
constexpr int kStartTicksField = 22;  // proc(5), counted from 1; field 2 is "(comm)" and may hold anything

std::string read_short_file(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, kStatBytesMax> bytes{};
  const ssize_t count = fd ? read(fd.get(), bytes.data(), bytes.size()) : -1;
  return count > 0 ? std::string(bytes.data(), static_cast<std::size_t>(count)) : std::string();
}

// What the second child tells before and after exec: its pid, then an errno if it could not execute.
struct Report {
  pid_t pid = 0;
  int error_number = 0;
};

// Everything is made before the fork: after it only what signal-safety(7) lists may be called.
struct Plan {
  const char* path = nullptr;
  char* const* argv = nullptr;
  char* const* envp = nullptr;
  int null_fd = -1;
  int log_fd = -1;
  int report_fd = -1;
};

void tell(int fd, const Report& report) {
  if (write(fd, &report, sizeof report) < 0) _exit(kExecFailed);
}

[[noreturn]] void run_child(const Plan& plan) {
  tell(plan.report_fd, {getpid(), 0});
  const bool placed = dup2(plan.null_fd, STDIN_FILENO) >= 0 && dup2(plan.log_fd, STDOUT_FILENO) >= 0 &&
                      dup2(plan.log_fd, STDERR_FILENO) >= 0;
  for (int number = 1; number < NSIG; ++number) {
    if (number != SIGKILL && number != SIGSTOP) (void)signal(number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // All other descriptors, the report's own included, close by themselves at exec.
  if (placed && close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC) == 0) execve(plan.path, plan.argv, plan.envp);
  tell(plan.report_fd, {getpid(), errno});
  _exit(kExecFailed);
}

Result<void> fork_twice(const Plan& plan) {
  const pid_t child = fork();
  if (child < 0) return fail_errno("cannot fork", errno);
  if (child == 0) {
    if (setsid() < 0) _exit(kExecFailed);
    const pid_t grandchild = _Fork();  // fork(2) without pthread_atfork(3)'s handlers, which are not signal-safe
    if (grandchild == 0) run_child(plan);
    _exit(grandchild < 0 ? kExecFailed : 0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno("cannot wait for a fork", errno);
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return fail(ErrorCode::kInternal, "the second fork failed; is a limit of processes reached?");
  return {};
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  out.reserve(texts.size() + 1);
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// Until the other end closes, which exec does. The first report names the pid; a second one says that exec failed.
Result<pid_t> read_reports(int fd, const std::string& path) {
  pid_t pid = 0;
  for (;;) {
    Report report;
    const ssize_t count = read(fd, &report, sizeof report);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0 && pid != 0) return pid;
    if (count != static_cast<ssize_t>(sizeof report))
      return fail(ErrorCode::kInternal, "cannot start " + path + ": it ended before it was executed");
    if (report.error_number != 0) return fail_errno("cannot execute " + path, report.error_number);
    pid = report.pid;
  }
}

}  // namespace

std::optional<std::uint64_t> start_ticks_of(pid_t pid) {
  const std::string stat = read_short_file("/proc/" + std::to_string(pid) + "/stat");
  const auto end_of_name = stat.rfind(')');
  if (end_of_name == std::string::npos) return std::nullopt;
  std::istringstream fields(stat.substr(end_of_name + 1));
  std::string field;
  for (int number = 3; number <= kStartTicksField; ++number) {
    if (!(fields >> field)) return std::nullopt;
    if (number == 3 && (field == "Z" || field == "X")) return std::nullopt;  // ended, not yet waited for
  }
  return std::strtoull(field.c_str(), nullptr, 10);
}

Result<ProcessId> start_detached(const DetachedCommand& command) {
  const UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) return fail_errno("cannot open /dev/null", errno);
  const UniqueFd log(open(command.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return fail_errno("cannot open " + command.log_path, errno);
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno("cannot make a pipe", errno);
  const UniqueFd reports(ends[0]);
  UniqueFd report_end(ends[1]);
  std::vector<std::string> words = {command.path};
  words.insert(words.end(), command.arguments.begin(), command.arguments.end());
  std::vector<std::string> environment = command.environment;
  const std::vector<char*> argv = pointers(words);
  const std::vector<char*> envp = pointers(environment);
  const Plan plan{command.path.c_str(), argv.data(), envp.data(), null.get(), log.get(), report_end.get()};
  const auto forked = fork_twice(plan);
  report_end.reset();
  if (!forked) return tl::unexpected(forked.error());
  const auto pid = read_reports(reports.get(), command.path);
  if (!pid) return tl::unexpected(pid.error());
  const auto ticks = start_ticks_of(*pid);
  if (!ticks) return fail(ErrorCode::kInternal, command.path + " ended as soon as it was started");
  return ProcessId{*pid, *ticks};
}

Result<DetachedProcess> DetachedProcess::open(const ProcessId& id, const std::string& exe) {
  const std::string gone = "process " + std::to_string(id.pid) + " is not the one that was started";
  // First the descriptor, then the look at who it is: what is seen after belongs to it if it still runs.
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, id.pid, 0)));
  if (!pidfd || start_ticks_of(id.pid) != id.start_ticks) return fail(ErrorCode::kNotFound, gone);
  std::array<char, PATH_MAX> target{};
  const std::string link = "/proc/" + std::to_string(id.pid) + "/exe";
  const ssize_t length = readlink(link.c_str(), target.data(), target.size() - 1);
  std::string runs(target.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
  constexpr std::string_view kReplaced = " (deleted)";  // upgraded meanwhile
  if (runs.ends_with(kReplaced)) runs.resize(runs.size() - kReplaced.size());
  std::array<char, PATH_MAX> resolved{};
  const std::string wanted = realpath(exe.c_str(), resolved.data()) != nullptr ? resolved.data() : exe;
  if (runs != wanted) return fail(ErrorCode::kNotFound, gone);
  return DetachedProcess(id, std::move(pidfd));
}

void DetachedProcess::watch(std::function<void()> ended) {
  source_ = watch_fd(pidfd_.get(), G_IO_IN, [this, ended = std::move(ended)](GIOCondition /*ready*/) {
    const auto call = ended;  // it may destroy this
    source_.cancel();
    call();
  });
}

Result<void> DetachedProcess::signal(int number) const {
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0) == 0 || errno == ESRCH) return {};
  return fail_errno("cannot signal process " + std::to_string(id_.pid), errno);
}

Result<void> save_process_id(const std::string& path, const std::string& boot_id, const ProcessId& id) {
  const std::string text = boot_id + " " + std::to_string(id.pid) + " " + std::to_string(id.start_ticks) + "\n";
  const std::string beside = path + ".new";
  const UniqueFd fd(open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd || write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      rename(beside.c_str(), path.c_str()) != 0)
    return fail_errno("cannot write " + path, errno);
  return {};
}

std::optional<ProcessId> load_process_id(const std::string& path, const std::string& boot_id) {
  std::istringstream fields(read_short_file(path));
  std::string boot;
  ProcessId id;
  if (!(fields >> boot >> id.pid >> id.start_ticks) || boot != boot_id || id.pid <= 1) return std::nullopt;
  return id;
}

}  // namespace usblease::cluster
