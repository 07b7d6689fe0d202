#include "daemon/cluster/tls_acceptor.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/cluster/tcp.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr int kAcceptsPerTurn = 16;
constexpr std::uint64_t kPauseNs = 100 * kNsPerMs;  // when descriptors or memory have run out
constexpr std::uint64_t kLogSpanNs = 10'000 * kNsPerMs;
constexpr int kLogLinesPerSpan = 20;

}  // namespace

bool LogBudget::take() {
  const std::uint64_t now_ns = boottime_now_ns();
  if (since_ns_ == 0 || now_ns >= since_ns_ + kLogSpanNs) {
    since_ns_ = now_ns;
    used_ = 0;
  }
  return used_++ < kLogLinesPerSpan;
}

TlsAcceptor::TlsAcceptor(UniqueFd listening, const TlsLimits& limits, std::size_t pending_max,
                         std::function<std::shared_ptr<const TlsCredentials>()> credentials, TlsConnection::Check check,
                         Events events)
    : listening_(std::move(listening)),
      limits_(limits),
      pending_max_(pending_max),
      credentials_(std::move(credentials)),
      check_(std::move(check)),
      events_(std::move(events)) {
  watch();
}

TlsAcceptor::~TlsAcceptor() {
  for (const Pending& each : pending_) each.connection->abandon();
}

void TlsAcceptor::watch() {
  watch_ = watch_fd(listening_.get(), G_IO_IN, [this](GIOCondition /*ready*/) { on_connections(); });
}

void TlsAcceptor::on_connections() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    UniqueFd fd(accept4(listening_.get(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) {
      admit(std::move(fd), address);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) return;
    if (log_budget_.take()) log::warning("cannot accept a connection", {{"ERROR", g_strerror(errno)}});
    watch_.cancel();
    pause_ = run_after(kPauseNs, [this] { watch(); });
    return;
  }
}

void TlsAcceptor::admit(UniqueFd fd, const sockaddr_storage& address) {
  const PeerAddress peer = peer_address(address);
  prepare_tcp(fd.get(), limits_.silent_ms);
  auto opened = TlsConnection::open(std::move(fd), TlsRole::kServer, credentials_(), check_, limits_, peer.text);
  if (!opened) {
    if (log_budget_.take()) log::warning(opened.error().message, {{"PEER", peer.text}});
    return;
  }
  if (pending_.size() >= pending_max_) make_room();
  TlsConnection* const connection = opened->get();
  connection->set_events({
      .ready =
          [this, connection] {
            auto taken = take(connection);
            if (!taken) return;
            if (taken->joining()) {
              events_.join(std::move(taken));
            } else {
              events_.host(std::move(taken));
            }
          },
      .frame = [](const std::string& /*before ready there is none*/) {},
      .ended =
          [this, connection](DownReason reason, const std::string& why) {
            const auto taken = take(connection);
            if (!taken || !log_budget_.take()) return;
            log::warning("refused a peer: " + why, {{"PEER", taken->peer()}, {"REASON", down_reason_name(reason)}});
          },
  });
  pending_.push_back({peer.host, std::move(*opened)});
}

// Whoever floods us pushes out his own connections, not those of others.
void TlsAcceptor::make_room() {
  std::map<std::string, std::size_t> count;
  for (const Pending& each : pending_) ++count[each.address];
  const auto most =
      std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto oldest =
      std::find_if(pending_.begin(), pending_.end(), [&](const Pending& each) { return each.address == most->first; });
  if (log_budget_.take()) {
    log::warning("too many connections that do not authenticate: cut off the oldest of those from " + oldest->address,
                 {{"PEER", oldest->connection->peer()}});
  }
  oldest->connection->abandon();
  pending_.erase(oldest);
}

std::shared_ptr<TlsConnection> TlsAcceptor::take(const TlsConnection* connection) {
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [&](const Pending& each) { return each.connection.get() == connection; });
  if (found == pending_.end()) return nullptr;
  auto taken = std::move(found->connection);
  pending_.erase(found);
  return taken;
}

}  // namespace usblease::cluster
