// For tests with real processes: a directory, a dongle, a main loop that is run until something is so.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/fd.h"

namespace usblease::test {

// Made under /tmp, removed with all that is in it.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();
  [[nodiscard]] std::string path(const std::string& name = "") const;

 private:
  std::string path_;
};

// Runs the default main context until `so` holds; the test fails, naming `what`, after `bound_ms`.
void wait_until(const char* what, const std::function<bool()>& so, std::uint32_t bound_ms = 10'000);
// Runs the main context for `duration_ms`: only for "and nothing happens then".
void run_for(std::uint32_t duration_ms);

// One line of the dongle's log.
struct DongleEvent {
  std::uint64_t t_ns = 0;
  unsigned stream = 0;
  std::string event;
  std::string text;  // the whole line
};

// A running usbredir-dongle; killed and reaped at the end.
class DongleProcess {
 public:
  // Waits for "ready". `arguments` besides --listen unix:… and --log.
  DongleProcess(const TempDir& directory, const std::vector<std::string>& arguments, const std::string& listen = "");
  DongleProcess(const DongleProcess&) = delete;
  DongleProcess& operator=(const DongleProcess&) = delete;
  ~DongleProcess() { kill_and_reap(); }
  void kill_and_reap();
  [[nodiscard]] const std::string& address() const { return address_; }
  [[nodiscard]] std::vector<DongleEvent> log() const;
  [[nodiscard]] std::size_t count(const std::string& event) const;

 private:
  std::string log_path_;
  std::string address_;
  pid_t pid_ = -1;
};

// Field of /proc/PID/status, without the leading blanks; nullopt: there is no such process.
std::optional<std::string> proc_status(pid_t pid, const std::string& field);

}  // namespace usblease::test
