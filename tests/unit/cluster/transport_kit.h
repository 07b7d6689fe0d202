// Hosts on loopback for the tests of the transport: real ones, each with a record of what happened to it, and raw TLS
// peers that can misbehave.
#pragma once

#include <glib.h>
#include <gnutls/gnutls.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/fd.h"
#include "common/frame.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "daemon/cluster/tls_transport.h"
#include "tests/unit/cluster/identity_kit.h"

namespace usblease::test {

inline constexpr std::uint64_t kPatienceMs = 20'000;

// Runs the main loop until `done`; false: patience is over.
bool wait_until(const std::function<bool()>& done, std::uint64_t ms = kPatienceMs);

#define ck_wait(condition) \
  ck_assert_msg(usblease::test::wait_until([&] { return condition; }), "in vain: %s", #condition)

// Check's own assertions work inside a test only; this one also where a benchmark uses the kit.
#define ck_must(condition)                                 \
  do {                                                     \
    if (!(condition)) ck_abort_msg("not: %s", #condition); \
  } while (false)

// Bounds that are short enough for tests and long enough for a busy machine.
cluster::TlsTransportOptions quick_options();

struct Down {
  cluster::DownReason reason;
  std::string why;
};

// One host with its transport.
class Node {
 public:
  explicit Node(const cluster::Identity& identity, cluster::TlsTransportOptions options = quick_options());

  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(transport->port()); }
  [[nodiscard]] cluster::Peer peer() const { return {host_id, {address()}}; }
  [[nodiscard]] bool was_down(cluster::DownReason reason, const std::string& part = "") const {
    return std::any_of(downs.begin(), downs.end(), [&](const Down& down) {
      return down.reason == reason && down.why.find(part) != std::string::npos;
    });
  }

  std::string host_id;
  std::vector<std::string> story;  // "up b", "accepted b", "gone", …, in order
  std::vector<Down> downs;
  std::vector<std::string> answers;
  std::vector<std::string> requests;
  std::map<cluster::AcceptedId, std::string> accepted;
  std::function<void(cluster::AcceptedId, std::string)> on_request;  // default: echo
  std::function<void(std::string, std::function<void(std::string)>)> on_join;
  std::size_t joins = 0;
  std::unique_ptr<cluster::TlsTransport> transport;
};

// A TLS peer by GnuTLS alone, blocking, to be used from a thread of its own.
class RawPeer {
 public:
  struct Options {
    std::string priority = "NORMAL:-VERS-ALL:+VERS-TLS1.3";
    std::string alpn = "usblease/1";              // empty: none
    const cluster::Identity* identity = nullptr;  // null: no certificate
    bool server = false;
  };
  RawPeer(UniqueFd fd, const Options& options);
  ~RawPeer();
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  int handshake();
  bool send(const std::string& bytes);
  // What comes until `bytes` are there, the end, or an error.
  std::string receive(std::size_t bytes);
  // The error of the last receive, 0 at an orderly end.
  [[nodiscard]] int error() const { return error_; }
  [[nodiscard]] int alert() const { return gnutls_alert_get(session_); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void goodbye() { gnutls_bye(session_, GNUTLS_SHUT_WR); }

 private:
  UniqueFd fd_;
  gnutls_certificate_credentials_t credentials_ = nullptr;
  gnutls_session_t session_ = nullptr;
  int error_ = 0;
};

// Connected to 127.0.0.1; blocking, with a bound on every receive.
UniqueFd connect_to(std::uint16_t port);
struct Listening {
  UniqueFd fd;
  std::uint16_t port = 0;
};
Listening listen_anywhere();

// Runs `work` in a thread while the main loop goes on, and waits for its end.
void beside(const std::function<void()>& work);

}  // namespace usblease::test
