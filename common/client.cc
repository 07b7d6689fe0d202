#include "common/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "common/boottime.h"
#include "common/unix_socket.h"

namespace usblease {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

// false: the deadline has passed.
bool wait_ready(int fd, short events, std::uint64_t deadline_ns) {
  for (;;) {
    const std::uint64_t now_ns = boottime_now_ns();
    if (now_ns >= deadline_ns) return false;
    const std::uint64_t left_ms = (deadline_ns - now_ns + kNsPerMs - 1) / kNsPerMs;
    pollfd ready{fd, events, 0};
    const int count = poll(&ready, 1, static_cast<int>(std::min<std::uint64_t>(left_ms, INT_MAX)));
    if (count > 0) return true;
  }
}

tl::unexpected<Error> too_late() {
  return fail(ErrorCode::kTimedOut, "usbleased did not answer in time; see its log, or `usblease status`");
}

tl::unexpected<Error> hung_up() {
  return fail(ErrorCode::kUnavailable, "usbleased closed the connection; see its log for why");
}

}  // namespace

Result<Client> Client::connect(const std::string& socket_path, std::uint64_t deadline_ns) {
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t left_ms = deadline_ns > now_ns ? (deadline_ns - now_ns) / kNsPerMs : 0;
  auto fd =
      connect_unix(socket_path, static_cast<std::uint32_t>(std::min<std::uint64_t>(left_ms, UINT32_MAX)), SOCK_STREAM);
  if (!fd) {
    return fail(fd.error().code == ErrorCode::kTimedOut ? ErrorCode::kTimedOut : ErrorCode::kUnavailable,
                "usbleased does not answer (" + fd.error().message + "); is it running? `systemctl status usbleased`");
  }
  return Client(std::move(*fd));
}

Result<void> Client::send(const std::string& payload, std::uint64_t deadline_ns) {
  if (payload.size() > kFramePayloadMax) {
    return fail(ErrorCode::kBadInput, "the request is larger than " + std::to_string(kFramePayloadMax) + " bytes");
  }
  const std::string frame = encode_frame(payload);
  std::size_t sent = 0;
  while (sent < frame.size()) {
    const ssize_t count = ::send(fd_.get(), frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL);
    if (count >= 0) {
      sent += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {
      if (!wait_ready(fd_.get(), POLLOUT, deadline_ns)) return too_late();
    } else if (errno != EINTR) {
      // It may have said why before it closed: receive() then tells that.
      take_what_is_there();
      if (reader_.pending() > 0) return {};
      return hung_up();
    }
  }
  return {};
}

void Client::take_what_is_there() {
  std::array<char, 16384> chunk;
  for (;;) {
    const ssize_t count = read(fd_.get(), chunk.data(), chunk.size());
    if (count > 0) {
      reader_.push({chunk.data(), static_cast<std::size_t>(count)});
    } else if (count == 0 || errno != EINTR) {
      return;
    }
  }
}

Result<std::string> Client::receive(std::uint64_t deadline_ns) {
  std::array<char, 16384> chunk;
  for (;;) {
    auto frame = reader_.next();
    if (!frame) return tl::unexpected(frame.error());
    if (frame->has_value()) return std::move(**frame);
    const ssize_t count = read(fd_.get(), chunk.data(), chunk.size());
    if (count > 0) {
      reader_.push({chunk.data(), static_cast<std::size_t>(count)});
    } else if (count < 0 && errno == EAGAIN) {
      if (!wait_ready(fd_.get(), POLLIN, deadline_ns)) return too_late();
    } else if (count == 0 || errno != EINTR) {
      return hung_up();
    }
  }
}

}  // namespace usblease
