// Unix stream sockets: where daemon, relay, hook and CLI meet.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease {

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

// Binds and listens, non-blocking, close-on-exec. A stale socket (nobody listens) at `path` is replaced; a live one, or
// anything that is not a socket, is refused with what to do. `type` is SOCK_STREAM or SOCK_SEQPACKET.
Result<UniqueFd> listen_unix(const std::string& path, mode_t mode, int type);

// Connects, bounded by timeout_ms; the returned descriptor is non-blocking. kUnavailable: nobody listens there.
Result<UniqueFd> connect_unix(const std::string& path, std::uint32_t timeout_ms, int type);

// SO_PEERCRED: who connected, as the kernel knew at connect(2).
Result<PeerCredentials> peer_credentials(int fd);

}  // namespace usblease
