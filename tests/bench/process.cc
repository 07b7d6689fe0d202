#include "tests/bench/process.h"

#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "common/fd.h"
#include "common/glib_ptr.h"

extern char** environ;

namespace usblease::bench {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  return argv;
}

}  // namespace

pid_t spawn(const std::vector<std::string>& arguments, const std::vector<std::string>& environment, int stdin_fd,
            const std::string& output) {
  std::vector<char*> argv = pointers(arguments);
  std::vector<char*> env;
  env.reserve(environment.size() + 64);
  for (const auto& variable : environment) env.push_back(const_cast<char*>(variable.c_str()));
  for (char** variable = environ; *variable != nullptr; ++variable) env.push_back(*variable);
  env.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (stdin_fd >= 0) posix_spawn_file_actions_adddup2(&actions, stdin_fd, STDIN_FILENO);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO})
    posix_spawn_file_actions_addopen(&actions, fd, output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  // What ends us by a signal waits for it with the signal blocked; what we start must not.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int failed = posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), env.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return failed == 0 ? pid : -1;
}

int wait_for(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int run_program(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                const std::string& stdin_text) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -1;
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  // The text fits into the pipe's buffer, so it can be written before anybody reads.
  if (write(writing.get(), stdin_text.data(), stdin_text.size()) != static_cast<ssize_t>(stdin_text.size())) return -1;
  const pid_t pid = spawn(arguments, environment, reading.get(), "/dev/null");
  writing.reset();
  return pid < 0 ? -1 : wait_for(pid);
}

Result<void> run_checked(const std::vector<std::string>& arguments) {
  char* out = nullptr;
  char* err = nullptr;
  int status = 0;
  GErrorOut error;
  const bool started = g_spawn_sync(nullptr, pointers(arguments).data(), nullptr, G_SPAWN_DEFAULT, nullptr, nullptr,
                                    &out, &err, &status, error.out()) != FALSE;
  const GChars out_owner(out);
  const GChars err_owner(err);
  if (!started) return fail(ErrorCode::kInternal, "cannot start " + arguments[0] + ": " + error.message());
  if (status != 0) return fail(ErrorCode::kInternal, arguments[0] + ": " + err);
  return {};
}

void on_interrupt(std::function<void()> clean) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals, clean = std::move(clean)] {
    int number = 0;
    sigwait(&signals, &number);
    clean();
    _exit(130);
  }).detach();
}

// Fields 14, 15 and 24 of proc(5)'s stat, which is counted after the name in parentheses.
Usage usage_of(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(in, line);
  const auto name_end = line.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(line.substr(name_end + 1));
  std::vector<std::string> words;
  for (std::string word; fields >> word;) words.push_back(word);
  constexpr std::size_t kUtime = 11, kStime = 12, kRss = 21;
  if (words.size() <= kRss) return {};
  Usage usage;
  usage.cpu_s = (std::stod(words[kUtime]) + std::stod(words[kStime])) / static_cast<double>(sysconf(_SC_CLK_TCK));
  usage.resident_bytes = std::stoull(words[kRss]) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return usage;
}

}  // namespace usblease::bench
