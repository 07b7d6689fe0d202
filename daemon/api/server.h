// The server's side of the request protocol (docs/protocol.md): connections, credentials, frames, bounds. What a
// request means is the handler's business. All of it runs on the main loop.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "api.pb.h"
#include "common/error.h"
#include "common/fd.h"
#include "common/main_loop.h"
#include "daemon/api/credentials.h"
#include "daemon/api/responder.h"

namespace usblease::api {

inline constexpr std::size_t kConnectionsMax = 512;
inline constexpr std::size_t kConnectionsPerUserMax = 64;     // of one uid that is not root
inline constexpr std::size_t kConnectionsForRoot = 32;        // of kConnectionsMax: an administrator always gets in
inline constexpr std::size_t kRequestsPerConnectionMax = 64;  // unanswered; at that number reading pauses
inline constexpr std::size_t kOutputBytesMax =
    std::size_t{4} * 1024 * 1024;  // of one connection; a slower reader is cut off
inline constexpr std::uint32_t kHelloTimeoutMs = 5'000;
inline constexpr std::uint32_t kStalledOutputMs = 30'000;  // a client that reads nothing for so long is cut off

// The bounds of one server; others than the defaults are for tests.
struct Limits {
  std::size_t connections = kConnectionsMax;
  std::size_t connections_per_user = kConnectionsPerUserMax;
  std::size_t connections_for_root = kConnectionsForRoot;
  std::size_t requests_per_connection = kRequestsPerConnectionMax;
  std::size_t output_bytes = kOutputBytesMax;
  std::uint32_t hello_timeout_ms = kHelloTimeoutMs;
  std::uint32_t stalled_output_ms = kStalledOutputMs;
};

using Handler = std::function<void(const Caller&, const ClientFrame&, Responder)>;

class Server {
 public:
  // `listening`: a listening stream socket, from systemd or from listen_unix. Replies to Hello itself with `hello`
  // (a different version is refused with both numbers), and to callers that may neither act nor read with CODE_DENIED;
  // passes everything else to `handler`, which may answer at once or later, also after the server is gone, but must
  // not destroy the server.
  Server(UniqueFd listening, AccessRules rules, HelloReply hello, Handler handler, Limits limits = {});
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] std::size_t connections() const;

  // Nobody is accepted any more; who connects waits in the backlog for whom the socket is handed to.
  UniqueFd stop_accepting();

 private:
  class Connection;
  void accept_some();
  void pause_accepting(int error_number);
  void admit(UniqueFd fd);
  [[nodiscard]] bool may_log();
  [[nodiscard]] std::string reason_to_refuse(uid_t uid) const;

  UniqueFd listening_;
  AccessRules rules_;
  HelloReply hello_;
  Handler handler_;
  Limits limits_;
  std::uint64_t next_id_ = 1;
  std::uint64_t log_window_ns_ = 0;
  std::uint32_t log_lines_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Connection>> open_;
  SourceHandle accepting_;
  SourceHandle retry_;  // after EMFILE: accepting pauses instead of spinning
};

}  // namespace usblease::api
