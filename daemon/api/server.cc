#include "daemon/api/server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/boottime.h"
#include "common/frame.h"
#include "common/log.h"
#include "common/unix_socket.h"
#include "daemon/api/connection.h"

namespace usblease::api {
namespace {

constexpr int kAcceptsPerTurn = 32;
constexpr std::uint64_t kAcceptRetryNs = 250'000'000;

constexpr std::uint64_t kLogWindowNs = 1'000'000'000;
constexpr std::uint32_t kLogLinesPerWindow = 20;

// Best effort: the socket is new, so the few bytes fit into it.
void send_refusal(int fd, const std::string& message) {
  ServerFrame frame;
  frame.mutable_status()->set_code(command::CODE_UNAVAILABLE);
  frame.mutable_status()->set_message(message);
  const std::string bytes = encode_frame(frame.SerializeAsString());
  if (send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    log::debug("a refused client was gone already");
  }
}

}  // namespace

Server::Server(UniqueFd listening, AccessRules rules, HelloReply hello, Handler handler, Limits limits)
    : listening_(std::move(listening)),
      rules_(std::move(rules)),
      hello_(std::move(hello)),
      handler_(std::move(handler)),
      limits_(limits) {
  hello_.set_version(kApiVersion);
  // systemd's sockets may block; here nothing may.
  const int flags = fcntl(listening_.get(), F_GETFL);
  if (flags >= 0) fcntl(listening_.get(), F_SETFL, flags | O_NONBLOCK);
  accepting_ = watch_fd(listening_.get(), G_IO_IN, [this](GIOCondition /*ready*/) { accept_some(); });
}

Server::~Server() {
  for (const auto& [id, connection] : open_) connection->drop();
}

std::size_t Server::connections() const { return open_.size(); }

UniqueFd Server::stop_accepting() {
  accepting_.cancel();
  retry_.cancel();
  return std::move(listening_);
}

void Server::accept_some() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) {
      admit(std::move(fd));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      pause_accepting(errno);
      return;
    }
  }
}

// Out of descriptors or memory: the waiting client stays in the backlog, and the loop must not spin on it.
void Server::pause_accepting(int error_number) {
  log::warning("cannot accept a connection, trying again; is the limit of open files too low (LimitNOFILE=)?",
               {{"ERROR", g_strerror(error_number)}});
  accepting_.cancel();
  retry_ = run_after(kAcceptRetryNs, [this] {
    accepting_ = watch_fd(listening_.get(), G_IO_IN, [this](GIOCondition /*ready*/) { accept_some(); });
  });
}

std::string Server::reason_to_refuse(uid_t uid) const {
  const std::string end = "; close some of them, or try again later";
  const bool root = uid == 0;
  const std::size_t all = limits_.connections - (root ? 0 : limits_.connections_for_root);
  if (open_.size() >= all) return "usbleased serves " + std::to_string(open_.size()) + " connections already" + end;
  if (root) return "";
  std::size_t own = 0;
  for (const auto& [id, connection] : open_) own += connection->uid() == uid ? 1 : 0;
  if (own < limits_.connections_per_user) return "";
  return "user " + std::to_string(uid) + " has " + std::to_string(own) + " connections to usbleased already" + end;
}

// Anybody may connect and do wrong as often as he likes; the log must not grow as fast.
bool Server::may_log() {
  const std::uint64_t now_ns = boottime_now_ns();
  if (now_ns >= log_window_ns_ + kLogWindowNs) {
    log_window_ns_ = now_ns;
    log_lines_ = 0;
  }
  return log_lines_++ < kLogLinesPerWindow;
}

void Server::admit(UniqueFd fd) {
  const auto peer = peer_credentials(fd.get());
  if (!peer) {
    log::warning("refused a client without credentials", {{"ERROR", peer.error().message}});
    return;
  }
  if (const std::string reason = reason_to_refuse(peer->uid); !reason.empty()) {
    if (may_log()) log::warning("refused a connection: " + reason, {{"PEER", "uid " + std::to_string(peer->uid)}});
    send_refusal(fd.get(), reason);
    return;
  }
  const std::uint64_t id = next_id_++;
  const auto connection = std::make_shared<Connection>(*this, id, std::move(fd), *peer);
  open_.emplace(id, connection);
  connection->start();
}

}  // namespace usblease::api
