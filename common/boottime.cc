#include "common/boottime.h"

#include <glib.h>
#include <time.h>

#include <charconv>
#include <sstream>

#include "common/glib_ptr.h"

namespace usblease {
namespace {

constexpr std::uint64_t kNsPerS = 1'000'000'000;

std::uint64_t clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * kNsPerS + static_cast<std::uint64_t>(now.tv_nsec);
}

Result<std::string> read_small_file(const std::string& path) {
  char* contents = nullptr;
  gsize length = 0;
  GErrorOut error;
  if (g_file_get_contents(path.c_str(), &contents, &length, error.out()) == FALSE) {
    const bool absent = g_error_matches(error.get(), G_FILE_ERROR, G_FILE_ERROR_NOENT) != FALSE;
    return fail(absent ? ErrorCode::kNotFound : ErrorCode::kInternal, error.message());
  }
  const GChars owner(contents);
  return std::string(contents, length);
}

}  // namespace

std::uint64_t boottime_now_ns() { return clock_ns(CLOCK_BOOTTIME); }

std::uint64_t wall_clock_unix_s() { return clock_ns(CLOCK_REALTIME) / kNsPerS; }

Result<void> check_time_namespace(const std::string& path) {
  auto text = read_small_file(path);
  if (!text) {
    if (text.error().code == ErrorCode::kNotFound) return {};
    return tl::unexpected(text.error());
  }
  std::istringstream lines(*text);
  std::string clock;
  long long seconds = 0;
  long long nanoseconds = 0;
  bool known = false;
  while (lines >> clock >> seconds >> nanoseconds) {
    known = known || clock == "boottime";
    if (clock == "boottime" && (seconds != 0 || nanoseconds != 0)) {
      return fail(ErrorCode::kRefused,
                  "this process runs in a time namespace whose CLOCK_BOOTTIME is shifted by " +
                      std::to_string(seconds) + " s " + std::to_string(nanoseconds) +
                      " ns; deadlines would not mean the kernel's time. Start it outside of that time "
                      "namespace (see time_namespaces(7))");
    }
  }
  if (!known)
    return fail(ErrorCode::kInternal, path + " does not name the clock \"boottime\"; is it a time namespace?");
  return {};
}

Result<std::string> read_boot_id() {
  auto text = read_small_file("/proc/sys/kernel/random/boot_id");
  if (!text) return text;
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return text;
}

Result<std::uint64_t> process_start_ticks(int pid) {
  auto text = read_small_file("/proc/" + std::to_string(pid) + "/stat");
  if (!text) return fail(ErrorCode::kNotFound, "process " + std::to_string(pid) + " is gone");
  // The command name (field 2) may hold spaces and parentheses: fields are counted from the last ')'.
  const auto end_of_name = text->rfind(')');
  if (end_of_name == std::string::npos) return fail(ErrorCode::kInternal, "cannot parse /proc/PID/stat");
  std::istringstream fields(text->substr(end_of_name + 1));
  std::string field;
  for (int index = 3; index <= 22; ++index) {
    if (!(fields >> field)) return fail(ErrorCode::kInternal, "/proc/PID/stat is too short");
  }
  std::uint64_t ticks = 0;
  const auto parsed = std::from_chars(field.data(), field.data() + field.size(), ticks);
  if (parsed.ec != std::errc()) return fail(ErrorCode::kInternal, "/proc/PID/stat field 22 is not a number");
  return ticks;
}

}  // namespace usblease
