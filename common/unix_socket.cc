#include "common/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace usblease {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(ErrorCode::kBadInput, "the socket path " + path + " is too long: at most " +
                                          std::to_string(sizeof address.sun_path - 1) + " bytes are allowed");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* generic(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// Removes what a dead process left at `path`; refuses what is not ours to remove.
Result<void> clear_stale(const std::string& path, const sockaddr_un& address, int type) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno("cannot look at " + path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return fail(ErrorCode::kRefused, path + " exists and is not a socket; move it away, it is not ours to remove");
  }
  const UniqueFd probe(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_errno("socket", errno);
  if (connect(probe.get(), generic(address), sizeof address) == 0 || errno == EAGAIN) {
    return fail(ErrorCode::kRefused, "another process already listens on " + path + "; stop it first");
  }
  if (errno != ECONNREFUSED && errno != ENOENT) return fail_errno("cannot tell who listens on " + path, errno);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno("cannot remove the stale socket " + path, errno);
  return {};
}

}  // namespace

Result<UniqueFd> listen_unix(const std::string& path, mode_t mode, int type) {
  const auto address = address_of(path);
  if (!address) return tl::unexpected(address.error());
  if (const auto cleared = clear_stale(path, *address, type); !cleared) return tl::unexpected(cleared.error());
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("socket", errno);
  // The mode of the inode is that of the descriptor at bind(2): nobody can connect before chmod.
  if (fchmod(fd.get(), mode) != 0) return fail_errno("fchmod of " + path, errno);
  if (bind(fd.get(), generic(*address), sizeof *address) != 0) return fail_errno("cannot bind " + path, errno);
  if (chmod(path.c_str(), mode) != 0) return fail_errno("chmod of " + path, errno);
  if (listen(fd.get(), 128) != 0) return fail_errno("cannot listen on " + path, errno);
  return fd;
}

Result<UniqueFd> connect_unix(const std::string& path, std::uint32_t timeout_ms, int type) {
  const auto address = address_of(path);
  if (!address) return tl::unexpected(address.error());
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("socket", errno);
  // On a Unix socket EAGAIN means that the backlog is full: there is nothing to poll for, so a bounded retry.
  for (std::uint32_t waited_ms = 0;; waited_ms += 10) {
    if (connect(fd.get(), generic(*address), sizeof *address) == 0) return fd;
    if (errno == EINTR) continue;
    if (errno != EAGAIN) {
      return fail(ErrorCode::kUnavailable, "cannot connect to " + path + ": " + std::strerror(errno));
    }
    if (waited_ms >= timeout_ms) return fail(ErrorCode::kTimedOut, "nobody accepts connections on " + path);
    poll(nullptr, 0, 10);
  }
}

Result<PeerCredentials> peer_credentials(int fd) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return fail_errno("SO_PEERCRED", errno);
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

}  // namespace usblease
