#include "daemon/cluster/tls_transport.h"

#include <sys/random.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "daemon/cluster/tcp.h"
#include "daemon/cluster/tls_acceptor.h"
#include "daemon/cluster/tls_dial.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
// A connection that lived shorter does not count as success: the next attempt waits longer.
constexpr std::uint64_t kProvenNs = 1'000 * kNsPerMs;

// From half of `ms` to all of it, so that hosts which lost the same peer do not come back in step.
std::uint64_t with_jitter_ns(std::uint32_t ms) {
  std::uint32_t random = 0;
  if (getrandom(&random, sizeof(random), 0) != static_cast<ssize_t>(sizeof(random))) random = UINT32_MAX / 2;
  const std::uint64_t half_ns = ms * kNsPerMs / 2;
  return half_ns + half_ns * random / UINT32_MAX;
}

bool is_payload(const std::string& payload) {
  if (!payload.empty() && payload.size() <= kFramePayloadMax) return true;
  log::error("a frame between hosts has 1 to " + std::to_string(kFramePayloadMax) + " bytes; this one was not sent",
             {{"BYTES", std::to_string(payload.size())}});
  return false;
}

}  // namespace

class TlsTransport::Impl {
 public:
  Impl(const Identity& identity, TlsTransportOptions options, TransportEvents events)
      : options_(std::move(options)),
        events_(std::move(events)),
        host_id_(identity.host_id),
        cluster_id_(identity.cluster_id) {}

  ~Impl() {
    for (auto& [host_id, link] : links_) hang_up(link);
    for (auto& [id, accepted] : accepted_) accepted.connection->abandon();
    for (const auto& connection : joining_) connection->abandon();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<void> open(const Identity& identity);
  Result<void> set_identity(const Identity& identity);
  Result<std::uint16_t> port() const { return local_port(acceptor_->fd()); }

  void set_peers(std::vector<Peer> peers);
  bool ask(const std::string& host_id, const std::string& payload);
  bool answer(AcceptedId id, const std::string& payload);
  void drop(AcceptedId id);
  void forbid(const std::string& host_id);
  void permit(const std::string& host_id) { forbidden_.erase(host_id); }
  [[nodiscard]] bool connected(const std::string& host_id) const;

 private:
  // A peer that we dial.
  struct Link {
    Peer peer;
    std::unique_ptr<TlsDial> dial;              // an attempt is under way
    std::shared_ptr<TlsConnection> connection;  // up
    SourceHandle retry;                         // the wait for the next attempt
    std::uint32_t wait_ms = 0;
    std::uint64_t up_since_ns = 0;
    std::string last_why;  // logged once, not with every attempt
  };
  struct Accepted {
    std::string host_id;
    std::shared_ptr<TlsConnection> connection;
  };

  [[nodiscard]] TlsLimits limits() const {
    return {options_.handshake_ms, options_.silent_ms, options_.output_bytes_max};
  }
  std::optional<Refusal> check(const CertifiedHost& host, const std::string& expected) const;
  static void hang_up(Link& link);

  void dial(const std::string& host_id);
  void dial_ready(const std::string& host_id, std::shared_ptr<TlsConnection> connection);
  void dial_failed(const std::string& host_id, DownReason reason, const std::string& why);
  void link_ended(const std::string& host_id, DownReason reason, const std::string& why);
  void retry_later(Link& link);

  void accept(std::shared_ptr<TlsConnection> connection);
  void accepted_ended(AcceptedId id, DownReason reason, const std::string& why);
  void accept_join(const std::shared_ptr<TlsConnection>& connection);
  void join_asked(TlsConnection* connection, std::string payload);
  void forget_join(const TlsConnection* connection);

  void schedule_tick();
  void tick();

  const TlsTransportOptions options_;
  const TransportEvents events_;
  const std::string host_id_;
  const std::string cluster_id_;
  std::shared_ptr<const TlsCredentials> credentials_;
  std::set<std::string> forbidden_;
  std::map<std::string, Link> links_;
  std::map<AcceptedId, Accepted> accepted_;
  std::map<std::string, AcceptedId> accepted_of_host_;
  std::vector<std::shared_ptr<TlsConnection>> joining_;
  AcceptedId next_id_ = 1;
  SourceHandle tick_;
  std::unique_ptr<TlsAcceptor> acceptor_;  // last: it uses the rest
};

Result<void> TlsTransport::Impl::open(const Identity& identity) {
  if (auto set = set_identity(identity); !set) return set;
  auto listening = listen_tcp(options_.listen);
  if (!listening) return tl::unexpected(listening.error());
  acceptor_ = std::make_unique<TlsAcceptor>(
      std::move(*listening), limits(), options_.unauthenticated_max, [this] { return credentials_; },
      [this](const CertifiedHost& host) { return check(host, ""); },
      TlsAcceptor::Events{[this](std::shared_ptr<TlsConnection> connection) { accept(std::move(connection)); },
                          [this](const std::shared_ptr<TlsConnection>& connection) { accept_join(connection); }});
  schedule_tick();
  return {};
}

Result<void> TlsTransport::Impl::set_identity(const Identity& identity) {
  if (identity.host_id != host_id_ || identity.cluster_id != cluster_id_)
    return fail(ErrorCode::kRefused, "the new certificate names host " + identity.host_id + " of cluster " +
                                         identity.cluster_id + ", and this is host " + host_id_ + " of cluster " +
                                         cluster_id_);
  auto credentials = TlsCredentials::of_host(identity);
  if (!credentials) return tl::unexpected(credentials.error());
  credentials_ = std::move(*credentials);
  return {};
}

std::optional<Refusal> TlsTransport::Impl::check(const CertifiedHost& host, const std::string& expected) const {
  if (!expected.empty() && host.host_id != expected)
    return Refusal{GNUTLS_A_BAD_CERTIFICATE,
                   "it is host " + host.host_id + ", not " + expected + "; are the addresses right?"};
  if (forbidden_.contains(host.host_id))
    return Refusal{GNUTLS_A_ACCESS_DENIED, "host " + host.host_id + " was removed from the cluster"};
  return std::nullopt;
}

// --- Peers that we dial -------------------------------------------------------------------------

void TlsTransport::Impl::hang_up(Link& link) {
  link.dial.reset();
  link.retry.cancel();
  if (link.connection) link.connection->abandon();
  link.connection.reset();
}

void TlsTransport::Impl::set_peers(std::vector<Peer> peers) {
  if (peers.size() > kPeersMax) {
    log::error("more peers than a host dials; the rest is left out", {{"COUNT", std::to_string(peers.size())}});
    peers.resize(kPeersMax);
  }
  std::set<std::string> named;
  for (Peer& peer : peers) {
    if (peer.addresses.size() > kPeerAddressesMax) peer.addresses.resize(kPeerAddressesMax);
    const std::string host_id = peer.host_id;
    if (!named.insert(host_id).second) continue;
    Link& link = links_[host_id];
    const bool changed = link.peer != peer;
    link.peer = std::move(peer);
    if (link.connection || !changed) continue;
    // New addresses: no reason to wait, and none to go on with the old ones.
    link.wait_ms = 0;
    link.dial.reset();
    dial(host_id);
  }
  for (auto link = links_.begin(); link != links_.end();) {
    if (named.contains(link->first)) {
      ++link;
      continue;
    }
    hang_up(link->second);
    link = links_.erase(link);
  }
}

void TlsTransport::Impl::dial(const std::string& host_id) {
  const auto found = links_.find(host_id);
  if (found == links_.end()) return;
  Link& link = found->second;
  link.retry.cancel();
  const auto check_host = [this, host_id](const CertifiedHost& host) { return check(host, host_id); };
  link.dial = std::make_unique<TlsDial>(
      link.peer.addresses, TlsDial::Setup{TlsRole::kClient, credentials_, check_host, limits()},
      TlsDial::Events{
          [this, host_id](std::shared_ptr<TlsConnection> connection) { dial_ready(host_id, std::move(connection)); },
          [this, host_id](DownReason reason, const std::string& why) { dial_failed(host_id, reason, why); }});
}

void TlsTransport::Impl::dial_ready(const std::string& host_id, std::shared_ptr<TlsConnection> connection) {
  Link& link = links_.at(host_id);
  link.connection = std::move(connection);
  link.connection->set_events({
      .ready = [] {},
      .frame = [this, host_id](std::string payload) { events_.answer(host_id, std::move(payload)); },
      .ended = [this, host_id](DownReason reason, const std::string& why) { link_ended(host_id, reason, why); },
  });
  link.up_since_ns = boottime_now_ns();
  link.last_why.clear();
  link.dial.reset();
  // It may have been removed since it showed its certificate.
  if (const auto refusal = check({cluster_id_, host_id}, host_id)) {
    link.connection->abandon();
    link.connection.reset();
    return dial_failed(host_id, DownReason::kUntrusted, refusal->why);
  }
  log::info("connected to a host", {{"HOST", host_id}, {"PEER", link.connection->peer()}});
  events_.up(host_id);
}

void TlsTransport::Impl::dial_failed(const std::string& host_id, DownReason reason, const std::string& why) {
  Link& link = links_.at(host_id);
  link.dial.reset();
  if (std::exchange(link.last_why, why) != why) {
    log::warning("cannot connect to host " + host_id + ": " + why,
                 {{"HOST", host_id}, {"REASON", down_reason_name(reason)}});
  }
  retry_later(link);
  events_.down(host_id, reason, why);
}

void TlsTransport::Impl::link_ended(const std::string& host_id, DownReason reason, const std::string& why) {
  Link& link = links_.at(host_id);
  log::warning("the connection to host " + host_id + " ended: " + why,
               {{"HOST", host_id}, {"PEER", link.connection->peer()}, {"REASON", down_reason_name(reason)}});
  link.connection.reset();
  if (boottime_now_ns() >= link.up_since_ns + kProvenNs) link.wait_ms = 0;
  retry_later(link);
  events_.down(host_id, reason, why);
}

void TlsTransport::Impl::retry_later(Link& link) {
  link.wait_ms = std::clamp(link.wait_ms * 2, options_.retry_min_ms, options_.retry_max_ms);
  link.retry = run_after(with_jitter_ns(link.wait_ms), [this, host_id = link.peer.host_id] { dial(host_id); });
}

bool TlsTransport::Impl::ask(const std::string& host_id, const std::string& payload) {
  if (!is_payload(payload)) return false;
  const auto found = links_.find(host_id);
  return found != links_.end() && found->second.connection && found->second.connection->send(payload);
}

bool TlsTransport::Impl::connected(const std::string& host_id) const {
  const auto found = links_.find(host_id);
  return found != links_.end() && found->second.connection && found->second.connection->ready();
}

// --- Connections that we accept -----------------------------------------------------------------

void TlsTransport::Impl::accept(std::shared_ptr<TlsConnection> connection) {
  const std::string host_id = connection->host().host_id;
  if (forbidden_.contains(host_id)) {
    connection->abandon();
    return;
  }
  if (const auto earlier = accepted_of_host_.find(host_id); earlier != accepted_of_host_.end()) {
    const AcceptedId id = earlier->second;
    auto old = accepted_.extract(id);
    accepted_of_host_.erase(earlier);
    old.mapped().connection->abandon();
    events_.gone(id);
  }
  if (accepted_.size() >= options_.accepted_max) {
    log::warning("too many hosts are connected: refused one more", {{"HOST", host_id}, {"PEER", connection->peer()}});
    connection->abandon();
    return;
  }
  const AcceptedId id = next_id_++;
  connection->set_events({
      .ready = [] {},
      .frame = [this, id](std::string payload) { events_.request(id, std::move(payload)); },
      .ended = [this, id](DownReason reason, const std::string& why) { accepted_ended(id, reason, why); },
  });
  log::info("a host has connected", {{"HOST", host_id}, {"PEER", connection->peer()}});
  accepted_.emplace(id, Accepted{host_id, std::move(connection)});
  accepted_of_host_[host_id] = id;
  events_.accepted(id, host_id);
}

void TlsTransport::Impl::accepted_ended(AcceptedId id, DownReason reason, const std::string& why) {
  const auto ended = accepted_.extract(id);
  if (ended.empty()) return;
  const std::string& host_id = ended.mapped().host_id;
  if (const auto of_host = accepted_of_host_.find(host_id); of_host != accepted_of_host_.end() && of_host->second == id)
    accepted_of_host_.erase(of_host);
  log::info("the connection of host " + host_id + " ended: " + why,
            {{"HOST", host_id}, {"PEER", ended.mapped().connection->peer()}, {"REASON", down_reason_name(reason)}});
  events_.gone(id);
}

bool TlsTransport::Impl::answer(AcceptedId id, const std::string& payload) {
  if (!is_payload(payload)) return false;
  const auto found = accepted_.find(id);
  if (found == accepted_.end() || !found->second.connection->ready()) return false;
  if (found->second.connection->send(payload)) return true;
  found->second.connection->cut(DownReason::kTimedOut, "it does not read what is sent to it: more than " +
                                                           std::to_string(options_.output_bytes_max) + " bytes waited");
  return false;
}

void TlsTransport::Impl::drop(AcceptedId id) {
  if (const auto found = accepted_.find(id); found != accepted_.end())
    found->second.connection->close("this host closed it");
}

void TlsTransport::Impl::forbid(const std::string& host_id) {
  if (!forbidden_.insert(host_id).second) return;
  const std::string why = "host " + host_id + " was removed from the cluster";
  if (const auto found = accepted_of_host_.find(host_id); found != accepted_of_host_.end())
    accepted_.at(found->second).connection->refuse(GNUTLS_A_ACCESS_DENIED, why);
  if (const auto found = links_.find(host_id); found != links_.end() && found->second.connection)
    found->second.connection->refuse(GNUTLS_A_ACCESS_DENIED, why);
}

// --- Who wants to join --------------------------------------------------------------------------

void TlsTransport::Impl::accept_join(const std::shared_ptr<TlsConnection>& connection) {
  TlsConnection* const raw = connection.get();
  if (joining_.size() >= options_.joining_max) {
    if (acceptor_->log_budget().take())
      log::warning("too many hosts ask to join at once: refused one", {{"PEER", raw->peer()}});
    raw->abandon();
    return;
  }
  // The deadline of the handshake goes on until the request has come.
  raw->set_events({
      .ready = [] {},
      .frame = [this, raw](std::string payload) { join_asked(raw, std::move(payload)); },
      .ended = [this, raw](DownReason /*of a stranger*/, const std::string& /*of a stranger*/) { forget_join(raw); },
  });
  joining_.push_back(connection);
}

void TlsTransport::Impl::join_asked(TlsConnection* connection, std::string payload) {
  const std::weak_ptr<TlsConnection> weak = connection->weak_from_this();
  connection->set_events({
      .ready = [] {},
      .frame =
          [connection](const std::string& /*too much*/) {
            connection->refuse(GNUTLS_A_UNEXPECTED_MESSAGE, "it sent a second request to join");
          },
      .ended = [this, connection](DownReason /*of a stranger*/,
                                  const std::string& /*of a stranger*/) { forget_join(connection); },
  });
  connection->set_deadline(options_.join_ms,
                           "no answer to its request to join within " + std::to_string(options_.join_ms) + " ms");
  if (acceptor_->log_budget().take()) log::info("somebody asks to join the cluster", {{"PEER", connection->peer()}});
  events_.join(std::move(payload), [weak](const std::string& answer) {
    const auto asking = weak.lock();
    if (!asking || !asking->ready() || !is_payload(answer)) return;
    asking->send(answer);
    asking->close("it has its answer");
  });
}

void TlsTransport::Impl::forget_join(const TlsConnection* connection) {
  joining_.erase(
      std::remove_if(joining_.begin(), joining_.end(), [&](const auto& each) { return each.get() == connection; }),
      joining_.end());
}

// --- Signs of life ------------------------------------------------------------------------------

void TlsTransport::Impl::schedule_tick() {
  tick_ = run_after(std::max<std::uint64_t>(options_.silent_ms / kTicksPerSilence, 1) * kNsPerMs, [this] { tick(); });
}

// Ends come later, from the main loop: nothing leaves the tables meanwhile.
void TlsTransport::Impl::tick() {
  for (auto& [host_id, link] : links_) {
    if (link.connection) link.connection->tick();
  }
  for (auto& [id, accepted] : accepted_) accepted.connection->tick();
  for (const auto& connection : joining_) connection->tick();
  schedule_tick();
}

// --- The interface ------------------------------------------------------------------------------

TlsTransport::TlsTransport(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
TlsTransport::~TlsTransport() = default;

Result<std::unique_ptr<TlsTransport>> TlsTransport::open(const Identity& identity, TlsTransportOptions options,
                                                         TransportEvents events) {
  auto impl = std::make_shared<Impl>(identity, std::move(options), std::move(events));
  if (const auto opened = impl->open(identity); !opened) return tl::unexpected(opened.error());
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): private constructor
  return std::unique_ptr<TlsTransport>(new TlsTransport(std::move(impl)));
}

Result<void> TlsTransport::set_identity(const Identity& identity) { return impl_->set_identity(identity); }
std::uint16_t TlsTransport::port() const { return impl_->port().value_or(0); }
void TlsTransport::set_peers(std::vector<Peer> peers) { impl_->set_peers(std::move(peers)); }
// NOLINTNEXTLINE(performance-unnecessary-value-param): the interface takes it by value
bool TlsTransport::ask(const std::string& host_id, std::string payload) { return impl_->ask(host_id, payload); }
// NOLINTNEXTLINE(performance-unnecessary-value-param)
bool TlsTransport::answer(AcceptedId id, std::string payload) { return impl_->answer(id, payload); }
void TlsTransport::drop(AcceptedId id) { impl_->drop(id); }
void TlsTransport::forbid(const std::string& host_id) { impl_->forbid(host_id); }
void TlsTransport::permit(const std::string& host_id) { impl_->permit(host_id); }
bool TlsTransport::connected(const std::string& host_id) const { return impl_->connected(host_id); }

}  // namespace usblease::cluster
