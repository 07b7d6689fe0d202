#include "daemon/api/activation.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <tuple>
#include <vector>

#include "common/log.h"
#include "common/text.h"
#include "common/unix_socket.h"

namespace usblease::api {
namespace {

constexpr const char* kHowTo = "; usbleased.socket must have exactly one ListenStream= with the path of a Unix socket";

std::string path_of(int fd) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  return std::string(address.sun_path, strnlen(address.sun_path, sizeof address.sun_path));
}

}  // namespace

Result<UniqueFd> request_socket(const std::string& path) {
  const int count = sd_listen_fds(/*unset_environment=*/1);
  if (count < 0) return fail_errno("sd_listen_fds: the descriptors from systemd", -count);
  if (count == 0) return listen_unix(path, 0666, SOCK_STREAM);
  std::vector<UniqueFd> passed;  // all are ours now, also to close
  passed.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) passed.emplace_back(SD_LISTEN_FDS_START + i);
  if (count != 1) {
    return fail(ErrorCode::kBadInput, "systemd passed " + std::to_string(count) + " sockets" + kHowTo);
  }
  const int fd = passed[0].get();
  const int fits = sd_is_socket_unix(fd, SOCK_STREAM, /*listening=*/1, nullptr, 0);
  if (fits < 0) return fail_errno("cannot look at the socket from systemd", -fits);
  if (fits == 0) {
    return fail(ErrorCode::kBadInput,
                std::string("systemd passed a descriptor that is not a listening Unix stream socket") + kHowTo);
  }
  if (const std::string actual = path_of(fd); actual != path) {
    log::warning("systemd listens on " + escape_text(actual) + ", but by usbleased.conf clients connect to " + path +
                 "; let ListenStream= of usbleased.socket agree with run_dir=");
  }
  return std::move(passed[0]);
}

Result<void> hand_over_socket(UniqueFd listening) {
  const std::string pid = std::to_string(getpid());
  // A copy of a descriptor outlives execv; one that is there already must be told to.
  const int at = listening.get() == SD_LISTEN_FDS_START ? fcntl(SD_LISTEN_FDS_START, F_SETFD, 0)
                                                        : dup2(listening.get(), SD_LISTEN_FDS_START);
  if (at < 0 || setenv("LISTEN_FDS", "1", 1) != 0 || setenv("LISTEN_PID", pid.c_str(), 1) != 0)
    return fail_errno("cannot keep the request socket open", errno);
  if (listening.get() == SD_LISTEN_FDS_START) std::ignore = listening.release();
  return {};
}

}  // namespace usblease::api
