#include "common/log.h"

#include <glib.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <vector>

#include "common/boottime.h"
#include "common/text.h"

namespace usblease::log {
namespace {

// The only global state of the project.
std::string g_program = "usblease";
Level g_least = Level::kInfo;
bool g_to_journal = false;

GLogLevelFlags glib_level(Level level) {
  switch (level) {
    case Level::kDebug:
      return G_LOG_LEVEL_DEBUG;
    case Level::kInfo:
      return G_LOG_LEVEL_INFO;
    case Level::kWarning:
      return G_LOG_LEVEL_WARNING;
    case Level::kError:
      return G_LOG_LEVEL_CRITICAL;
  }
  return G_LOG_LEVEL_CRITICAL;
}

const char* level_name(Level level) {
  switch (level) {
    case Level::kDebug:
      return "debug";
    case Level::kInfo:
      return "info";
    case Level::kWarning:
      return "warning";
    case Level::kError:
      return "error";
  }
  return "error";
}

const char* journal_priority(Level level) {
  switch (level) {
    case Level::kDebug:
      return "7";
    case Level::kInfo:
      return "6";
    case Level::kWarning:
      return "4";
    case Level::kError:
      return "3";
  }
  return "3";
}

void write_journal(Level level, const std::string& message, Fields fields) {
  std::vector<GLogField> out;
  out.push_back({"PRIORITY", journal_priority(level), -1});
  out.push_back({"SYSLOG_IDENTIFIER", g_program.c_str(), -1});
  out.push_back({"MESSAGE", message.c_str(), -1});
  for (const auto& [name, value] : fields) out.push_back({name, value.c_str(), static_cast<gssize>(value.size())});
  g_log_writer_journald(glib_level(level), out.data(), out.size(), nullptr);
}

void write_stderr(Level level, const std::string& message, Fields fields) {
  const std::uint64_t now_ns = boottime_now_ns();
  std::array<char, 48> stamp{};
  std::snprintf(stamp.data(), stamp.size(), "[%llu.%06llu] ", static_cast<unsigned long long>(now_ns / 1'000'000'000),
                static_cast<unsigned long long>(now_ns / 1000 % 1'000'000));
  std::string line = stamp.data() + g_program + ": " + level_name(level) + ": " + escape_text(message);
  for (const auto& [name, value] : fields) line += std::string(" ") + name + "=\"" + escape_text(value) + "\"";
  line += '\n';
  // One write a line, so that lines of several processes do not mix.
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nowhere left to say it
}

}  // namespace

void setup(const char* program, Level least) {
  g_program = program;
  g_least = least;
  g_to_journal = g_log_writer_is_journald(STDERR_FILENO) != FALSE;
}

void set_level(Level least) { g_least = least; }

void write(Level level, std::string_view message, Fields fields) {
  if (level < g_least) return;
  const std::string text(message);
  if (g_to_journal) {
    write_journal(level, text, fields);
  } else {
    write_stderr(level, text, fields);
  }
}

}  // namespace usblease::log
