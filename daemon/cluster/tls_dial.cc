#include "daemon/cluster/tls_dial.h"

#include <algorithm>
#include <utility>

#include "common/text.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint32_t kConnectMs = 2'000;
constexpr std::uint32_t kResolveMs = 3'000;

// What says more about the peer counts more; that its process is gone must be true at every address.
int weight(DownReason reason) {
  switch (reason) {
    case DownReason::kForbidden:
      return 6;
    case DownReason::kUntrusted:
      return 5;
    case DownReason::kTimedOut:
      return 4;
    case DownReason::kClosed:
    case DownReason::kReset:
      return 3;
    case DownReason::kUnresolved:
      return 2;
    case DownReason::kRefused:
      return 0;
  }
  return 0;
}

}  // namespace

TlsDial::TlsDial(std::vector<std::string> addresses, Setup setup, Events events)
    : addresses_(addresses.begin(), addresses.end()), setup_(std::move(setup)), events_(std::move(events)) {
  // Later: nothing is told inside the constructor.
  deadline_ = run_after(0, [this] { next_address(); });
}

TlsDial::~TlsDial() {
  if (connection_) connection_->abandon();
}

void TlsDial::note(DownReason reason, const std::string& where, const std::string& why) {
  if (reason_ && weight(*reason_) >= weight(reason)) return;
  reason_ = reason;
  why_ = escape_text(where.substr(0, 300)) + ": " + why;
}

void TlsDial::next_address() {
  resolution_.reset();
  if (addresses_.empty()) {
    deadline_.cancel();
    const auto failed = std::move(events_.failed);
    const std::string why = reason_ ? std::move(why_) : "it has no address";
    failed(reason_.value_or(DownReason::kUnresolved), why);
    return;  // this may be gone
  }
  address_ = std::move(addresses_.front());
  addresses_.pop_front();
  deadline_ = run_after(kResolveMs * kNsPerMs, [this] {
    note(DownReason::kUnresolved, address_, "its name was not resolved within " + std::to_string(kResolveMs) + " ms");
    next_address();
  });
  resolution_ = std::make_unique<Resolution>(address_, [this](std::vector<Endpoint> endpoints, const std::string& why) {
    deadline_.cancel();
    endpoints_.assign(endpoints.begin(), endpoints.end());
    if (endpoints_.empty()) note(DownReason::kUnresolved, address_, why);
    next_endpoint();
  });
}

void TlsDial::next_endpoint() {
  if (endpoints_.empty()) return next_address();
  const Endpoint endpoint = std::move(endpoints_.front());
  endpoints_.pop_front();
  connecting_ = std::make_unique<Connecting>(
      endpoint, std::min(kConnectMs, setup_.limits.handshake_ms),
      [this, peer = endpoint.text](UniqueFd fd, DownReason reason, const std::string& why) {
        connecting_.reset();
        if (fd) return connected(std::move(fd), peer);
        note(reason, peer, why);
        next_endpoint();
      });
}

void TlsDial::connected(UniqueFd fd, const std::string& peer) {
  prepare_tcp(fd.get(), setup_.limits.silent_ms);
  auto connection =
      TlsConnection::open(std::move(fd), setup_.role, setup_.credentials, setup_.check, setup_.limits, peer);
  if (!connection) {
    note(DownReason::kUntrusted, peer, connection.error().message);
    return next_endpoint();
  }
  connection_ = std::move(*connection);
  connection_->set_events({
      .ready =
          [this] {
            const auto ready = std::move(events_.ready);
            ready(std::exchange(connection_, nullptr));
          },
      .frame = [](const std::string& /*before ready there is none*/) {},
      .ended =
          [this, peer](DownReason reason, const std::string& why) {
            connection_.reset();
            note(reason, peer, why);
            next_endpoint();
          },
  });
}

}  // namespace usblease::cluster
