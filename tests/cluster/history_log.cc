#include "tests/cluster/history_log.h"

#include <time.h>

#include <cstdlib>

#include "common/text.h"

namespace usblease::cluster_test {
namespace {

// escape_text() leaves only printable characters.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : escape_text(text)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

std::uint64_t monotonic_now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

HistoryLog::HistoryLog(const std::string& path, std::string process)
    : file_(std::fopen(path.c_str(), "ae"), std::fclose), process_(std::move(process)) {
  if (file_) return;
  std::perror(path.c_str());
  std::exit(2);
}

void HistoryLog::write(const char* event, const Texts& texts, const Numbers& numbers) {
  std::string line = "{\"t_ns\":" + std::to_string(monotonic_now_ns()) + ",\"process\":" + quoted(process_) +
                     ",\"event\":" + quoted(event);
  for (const auto& [name, value] : texts) line.append(",\"").append(name).append("\":").append(quoted(value));
  for (const auto& [name, value] : numbers) line.append(",\"").append(name).append("\":").append(std::to_string(value));
  line += "}\n";
  const bool whole = std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size();
  if (whole && std::fflush(file_.get()) == 0) return;
  std::perror("the history");
  std::exit(2);
}

}  // namespace usblease::cluster_test
