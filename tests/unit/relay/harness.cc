#include "tests/unit/relay/harness.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/main_loop.h"
#include "tests/unit/relay/check_framework.h"

namespace usblease::test {

TempDir::TempDir() {
  std::string name = "/tmp/usblease-test-XXXXXX";
  ck_assert(mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::path(const std::string& name) const { return name.empty() ? path_ : path_ + "/" + name; }

void wait_until(const char* what, const std::function<bool()>& so, std::uint32_t bound_ms) {
  bool late = false;
  const SourceHandle timer = run_after(bound_ms * std::uint64_t{1'000'000}, [&late] { late = true; });
  while (!so()) {
    ck_assert_msg(!late, "after %u ms still not: %s", bound_ms, what);
    // Conditions on other processes and files have no event of their own: look at them again now and then.
    const SourceHandle again = run_after(2'000'000, [] {});
    g_main_context_iteration(nullptr, TRUE);
  }
}

void run_for(std::uint32_t duration_ms) {
  bool over = false;
  const SourceHandle timer = run_after(duration_ms * std::uint64_t{1'000'000}, [&over] { over = true; });
  while (!over) g_main_context_iteration(nullptr, TRUE);
}

DongleProcess::DongleProcess(const TempDir& directory, const std::vector<std::string>& arguments,
                             const std::string& listen)
    : log_path_(directory.path("dongle.log")),
      address_(listen.empty() ? "unix:" + directory.path("dongle.sock") : listen) {
  std::vector<std::string> all = {USBREDIR_DONGLE, "--listen", address_, "--log", log_path_};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(all.size() + 1);
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::array<int, 2> pipe_fds{};
  ck_assert_int_eq(pipe2(pipe_fds.data(), O_CLOEXEC), 0);
  pid_ = fork();
  if (pid_ < 0) ck_abort_msg("cannot fork");
  if (pid_ == 0) {
    dup2(pipe_fds[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ::close(pipe_fds[1]);
  const UniqueFd output(pipe_fds[0]);
  std::string line;
  for (char c = 0; read(output.get(), &c, 1) == 1 && c != '\n';) line += c;
  ck_assert_msg(line.rfind("ready", 0) == 0, "the dongle does not start: %s", line.c_str());
  if (line.size() > 6) address_ = address_.substr(0, address_.rfind(':') + 1) + line.substr(6);
}

void DongleProcess::kill_and_reap() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::vector<DongleEvent> DongleProcess::log() const {
  std::vector<DongleEvent> out;
  std::ifstream file(log_path_);
  for (std::string line; std::getline(file, line);) {
    unsigned long long t_ns = 0;
    unsigned stream = 0;
    std::array<char, 32> event{};
    if (std::sscanf(line.c_str(), "{\"t_ns\":%llu,\"stream\":%u,\"event\":\"%31[a-z]\"", &t_ns, &stream,
                    event.data()) != 3) {
      continue;  // the end of a line that is being written
    }
    out.push_back({t_ns, stream, event.data(), line});
  }
  return out;
}

std::size_t DongleProcess::count(const std::string& event) const {
  std::size_t number = 0;
  for (const DongleEvent& entry : log()) number += entry.event == event ? 1 : 0;
  return number;
}

std::optional<std::string> proc_status(pid_t pid, const std::string& field) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(field + ":", 0) != 0) continue;
    const auto begin = line.find_first_not_of(" \t", field.size() + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return std::nullopt;
}

}  // namespace usblease::test
