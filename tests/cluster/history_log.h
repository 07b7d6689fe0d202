// What one process knows, one JSON object a line: {"t_ns":CLOCK_MONOTONIC,"process":"NAME","event":"…",…}. The events
// and their members are described in tests/cluster/history.py, which reads them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

namespace usblease::cluster_test {

std::uint64_t monotonic_now_ns();

class HistoryLog {
 public:
  using Numbers = std::initializer_list<std::pair<const char*, std::uint64_t>>;
  using Texts = std::initializer_list<std::pair<const char*, std::string>>;

  // Appends to `path`; the process ends with a message when it cannot: a history with a hole proves nothing.
  HistoryLog(const std::string& path, std::string process);

  // On disk order is program order, also when the process is killed after the call.
  void write(const char* event, const Texts& texts, const Numbers& numbers = {});

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::string process_;
};

}  // namespace usblease::cluster_test
