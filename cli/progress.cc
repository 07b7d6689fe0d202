#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "cli/output.h"
#include "cli/table.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::size_t kObstaclesShown = 4;

std::size_t terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return 79;
  return size.ws_col - 1U;  // the last column makes some terminals wrap
}

bool can_redraw() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && term != nullptr && std::string_view(term) != "dumb" && *term != '\0';
}

std::string obstacle_text(const command::Obstacle& obstacle, std::uint64_t now_unix_s) {
  std::string out = escape_text(obstacle.device()) + ": ";
  if (!obstacle.guest().empty()) {
    out += (is_lock_name(obstacle.device()) ? "held by " : "held by guest ") + escape_text(obstacle.guest());
    if (!obstacle.host().empty()) out += " on " + escape_text(obstacle.host());
    if (obstacle.until_unix_s() != 0) out += " until " + format_until(obstacle.until_unix_s(), now_unix_s);
    out += " (token " + std::to_string(obstacle.token()) + ")";
  } else {
    out += obstacle.ahead() != 0 ? "not held by a guest" : "absent";
  }
  if (obstacle.ahead() != 0) out += ", " + std::to_string(obstacle.ahead()) + " ahead";
  return out;
}

std::string joined(const std::vector<std::string>& devices) {
  std::string out;
  for (const auto& device : devices) out += (out.empty() ? "" : ", ") + device;
  return out;
}

}  // namespace

std::string progress_text(const api::AttachProgress& progress, const std::string& guest,
                          const std::vector<std::string>& devices, std::uint64_t now_unix_s) {
  if (progress.stage() == "attaching") return "attaching " + joined(devices) + " to " + escape_text(guest);
  if (progress.stage() == "granted") return "granted: " + joined(devices) + " for " + escape_text(guest);
  if (progress.stage() != "queued") return escape_text(progress.stage()) + ": " + joined(devices);
  if (progress.obstacles().empty()) return "waiting for " + joined(devices);
  std::string out = "waiting for ";
  std::size_t shown = 0;
  for (const auto& obstacle : progress.obstacles()) {
    if (shown == kObstaclesShown) {
      return out + "; and " + std::to_string(static_cast<std::size_t>(progress.obstacles_size()) - shown) + " more";
    }
    out += (shown++ == 0 ? "" : "; ") + obstacle_text(obstacle, now_unix_s);
  }
  return out;
}

ProgressLine::ProgressLine(bool quiet) : quiet_(quiet), terminal_(can_redraw()) {}

void ProgressLine::show(const std::string& text) {
  if (quiet_ || text == shown_) return;
  shown_ = text;
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", cut_to_width(text, terminal_columns()).c_str());
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
}

void ProgressLine::clear() {
  if (terminal_ && !shown_.empty()) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }
  shown_.clear();
}

}  // namespace usblease::cli
