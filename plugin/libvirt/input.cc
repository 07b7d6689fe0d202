#include "plugin/libvirt/input.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>

#include "plugin/libvirt/quick_look.h"

namespace usblease::hook {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::size_t kFirstRoomBytes = 64UL * 1024;
constexpr std::size_t kRoomBytesMax = kXmlBytesMax + 1;  // one more, to tell a text that just fits

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// A pipe may give nothing for ever; a file is always ready.
bool wait_readable(int fd, std::uint64_t deadline_ns) {
  for (;;) {
    const std::uint64_t now = now_ns();
    if (now >= deadline_ns) return false;
    const std::uint64_t left_ms = (deadline_ns - now + kNsPerMs - 1) / kNsPerMs;
    pollfd ready{fd, POLLIN, 0};
    if (poll(&ready, 1, left_ms < INT_MAX ? static_cast<int>(left_ms) : INT_MAX) > 0) return true;
  }
}

}  // namespace

bool Input::make_room() {
  if (size_ < room_) return true;
  if (room_ == kRoomBytesMax) {
    // Too large to be parsed: from here on the text passes through the buffer and is only looked at.
    look(false);
    too_large_ = true;
    std::memmove(text_, text_ + size_ - kOverlapBytes, kOverlapBytes);
    size_ = kOverlapBytes;
    return true;
  }
  const std::size_t more = room_ == 0 ? kFirstRoomBytes : room_ * 2 < kRoomBytesMax ? room_ * 2 : kRoomBytesMax;
  auto* const grown = static_cast<char*>(std::realloc(text_, more));  // NOLINT(cppcoreguidelines-owning-memory)
  if (grown == nullptr) return false;
  text_ = grown;
  room_ = more;
  return true;
}

void Input::look(bool last) {
  found_ = found_ || hook::may_declare(text_, size_, !too_large_);
  if (last) may_declare_ = found_;
}

InputOutcome Input::read_all(int fd, std::uint64_t deadline_ns) {
  for (std::uint64_t total = 0; total <= kInputBytesMax;) {
    if (!make_room()) return InputOutcome::kBroken;
    if (!wait_readable(fd, deadline_ns)) return InputOutcome::kLate;
    const ssize_t count = read(fd, text_ + size_, room_ - size_);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0) return InputOutcome::kBroken;
    if (count == 0) {
      look(true);
      return too_large_ ? InputOutcome::kTooLarge : InputOutcome::kWhole;
    }
    size_ += static_cast<std::size_t>(count);
    total += static_cast<std::uint64_t>(count);
  }
  return InputOutcome::kTooLarge;  // and may_declare(): the rest is not known
}

}  // namespace usblease::hook
