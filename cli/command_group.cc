#include "cli/command_group.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>

#include "cli/process_tree.h"
#include "common/boottime.h"

namespace usblease::cli {
namespace {

constexpr int kLookAgainMs = 2;
constexpr std::string_view kPrefix = "usblease-lock-";

// The directory of this process's own cgroup (v2). kNotFound: none is mounted where this process can see it.
Result<std::string> own_cgroup() {
  std::string path;
  std::ifstream cgroups("/proc/self/cgroup");
  for (std::string line; std::getline(cgroups, line);) {
    if (line.starts_with("0::")) path = line.substr(3);
  }
  // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS… - TYPE SOURCE OPTIONS
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos || path.empty()) continue;
    std::istringstream words(line);
    std::string skipped;
    std::string root;
    std::string point;
    words >> skipped >> skipped >> skipped >> root >> point;
    if (root == "/") return point + (path == "/" ? "" : path);
    if (path.starts_with(root)) return point + path.substr(root.size());
  }
  return fail(ErrorCode::kNotFound, "no cgroup file system (version 2) is mounted");
}

Result<void> write_to(const std::string& path, const std::string& text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd || write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno(path, errno);
  return {};
}

// What is left of a `usblease lock` that was killed: a directory that nothing runs in any more.
void remove_left_over(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with(kPrefix)) continue;
    const auto pid = static_cast<pid_t>(std::strtol(name.c_str() + kPrefix.size(), nullptr, 10));
    if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) (void)rmdir(entry.path().c_str());
  }
}

int code_of(const siginfo_t& info) { return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status; }

// In the child. Does not return.
[[noreturn]] void run_command(const std::vector<std::string>& words,
                              const std::map<std::string, std::string>& environment, const DeadlineGuard& guard,
                              pid_t parent, int go, int failed) {
  // Not before it is confined, and the guard knows of it.
  char word = 0;
  if (read(go, &word, 1) != 1 || guard.has_struck()) _exit(127);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& each : words) argv.push_back(const_cast<char*>(each.c_str()));
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  const int error = errno;
  (void)!write(failed, &error, sizeof error);
  _exit(127);
}

}  // namespace

Result<void> CommandGroup::make_cgroup() {
  auto own = own_cgroup();
  if (!own) return tl::unexpected(own.error());
  const std::string path = *own + "/" + std::string(kPrefix) + std::to_string(getpid());
  remove_left_over(*own);
  if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return fail_errno(path, errno);
  if (access((path + "/cgroup.kill").c_str(), W_OK) != 0) {
    const int error = errno;
    rmdir(path.c_str());
    return fail_errno(path + "/cgroup.kill (Linux 5.14 and later)", error);
  }
  cgroup_ = path;
  return {};
}

// The child waits until it is where it can be ended with all that it starts.
Result<void> CommandGroup::confine(pid_t pid) {
  Result<void> made = make_cgroup();
  if (made) made = write_to(cgroup_ + "/cgroup.procs", std::to_string(pid));
  if (made) return made;
  if (!cgroup_.empty()) rmdir(cgroup_.c_str());
  cgroup_.clear();
  why_no_cgroup_ = made.error().message;
  if (setpgid(pid, pid) != 0) return fail_errno("cannot make a process group", errno);
  return {};
}

Result<CommandGroup> CommandGroup::start(const std::vector<std::string>& words,
                                         const std::map<std::string, std::string>& environment, DeadlineGuard& guard) {
  std::array<int, 2> go{};
  std::array<int, 2> failed{};
  if (pipe2(go.data(), O_CLOEXEC) != 0) return fail_errno("cannot start the command", errno);
  const UniqueFd go_read(go[0]);
  UniqueFd go_write(go[1]);
  if (pipe2(failed.data(), O_CLOEXEC) != 0) return fail_errno("cannot start the command", errno);
  const UniqueFd failed_read(failed[0]);
  UniqueFd failed_write(failed[1]);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const pid_t parent = getpid();
  CommandGroup group;
  group.pid_ = fork();
  if (group.pid_ < 0) return fail_errno("cannot start the command", errno);
  if (group.pid_ == 0) {
    go_write.reset();
    run_command(words, environment, guard, parent, go_read.get(), failed_write.get());
  }
  failed_write.reset();
  group.pid_fd_.reset(static_cast<int>(syscall(SYS_pidfd_open, group.pid_, 0)));
  Result<void> ready = group.pid_fd_ ? group.confine(group.pid_) : fail_errno("cannot watch the command", errno);
  if (ready) ready = guard.take_charge(group.pid_, group.cgroup_);
  // Without this byte the child ends by itself.
  if (ready && write(go_write.get(), "g", 1) != 1) ready = fail_errno("cannot start the command", errno);
  go_write.reset();
  int error = 0;
  // The end of file is execve's, which closes the pipe.
  if (read(failed_read.get(), &error, sizeof error) == sizeof error && ready) {
    const std::string what = words[0] + ": ";
    ready = error == ENOENT ? Result<void>(fail(ErrorCode::kNotFound, what + "there is no such program"))
                            : fail(ErrorCode::kRefused, what + "it cannot be executed: " + strerrordesc_np(error));
  }
  if (ready) return group;
  group.kill_all(boottime_now_ns() + 1'000'000'000);
  return tl::unexpected(ready.error());
}

CommandGroup::~CommandGroup() {
  if (!cgroup_.empty()) rmdir(cgroup_.c_str());
}

void CommandGroup::signal(int number) const { (void)syscall(SYS_pidfd_send_signal, pid_fd_.get(), number, nullptr, 0); }

void CommandGroup::kill_group() const {
  if (!cgroup_.empty()) kill_cgroup(cgroup_);
  // While the command is not reaped its number is nobody else's.
  if (cgroup_.empty() && !reaped_) (void)kill(-pid_, SIGKILL);
  // What has left its group comes here when its parents have ended. Every child of this process is of the command.
  for (const pid_t child : children_of(getpid())) {
    if (child != pid_ || !reaped_) (void)kill(child, SIGKILL);
  }
}

// The command itself last, so that its process group keeps its number.
bool CommandGroup::reap() {
  bool alone = true;
  for (const pid_t child : children_of(getpid())) {
    siginfo_t info{};
    if (child == pid_) continue;
    alone = waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG) == 0 && info.si_pid != 0 && alone;
  }
  if (!alone) return false;
  siginfo_t info{};
  if (!reaped_) {
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0) return false;
    exit_code_ = code_of(info);
    reaped_ = true;
  }
  const bool childless = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 && errno == ECHILD;
  return childless && (cgroup_.empty() || !is_populated(cgroup_));
}

bool CommandGroup::kill_all(std::uint64_t until_ns) {
  // A process ends some time after its SIGKILL, and its children become ours only then.
  for (;;) {
    if (reap()) return true;
    kill_group();
    if (boottime_now_ns() >= until_ns) return false;
    poll(nullptr, 0, kLookAgainMs);
  }
}

}  // namespace usblease::cli
