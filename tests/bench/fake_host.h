// A host that is nothing but its session: joined with a token like any other, over TLS, with devices that it reports
// and leases of its own guest on them, all of which it names in every renewal. On the main loop.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/main_loop.h"
#include "daemon/cluster/join_client.h"
#include "daemon/cluster/tls_transport.h"
#include "peer.pb.h"
#include "tests/bench/latency.h"

namespace usblease::bench {

struct FakeHostStats {
  Latencies answers;  // of renewals
  std::uint64_t refused = 0;
  std::uint64_t short_answers = 0;  // that did not renew every lease
};

class FakeHost {
 public:
  using Done = std::function<void(Result<void>)>;

  FakeHost(std::string host_id, int leases, std::uint32_t renewal_ms, FakeHostStats& stats);

  // Joins with the token, connects to `coordinator` (host id and address), registers and renews from then on, reports,
  // acquires. `done` once, when it has all its leases.
  void start(const std::string& token, cluster::Peer coordinator, Done done);

 private:
  void joined(const Result<cluster::JoinAnswer>& answer);
  void connected();
  void next_step();
  void answered(const std::string& payload);
  void renew_later();
  void renew();
  void send(peer::PeerRequest request, std::function<void(const peer::PeerAnswer&)> on_answer);
  void fail_with(const std::string& why);
  [[nodiscard]] std::string device(int number) const;
  [[nodiscard]] peer::PeerRequest registration() const;
  [[nodiscard]] peer::PeerRequest report(int number) const;
  [[nodiscard]] peer::PeerRequest acquisition(int first) const;

  const std::string host_id_;
  const std::string boot_id_;
  const int leases_;
  const std::uint64_t renewal_ns_;
  FakeHostStats& stats_;
  cluster::Peer coordinator_;
  std::string key_;  // of the certificate request
  Done done_;
  std::deque<peer::PeerRequest> steps_;  // commands that are to be sent, one after the other
  std::unique_ptr<cluster::JoinClient> join_;
  std::unique_ptr<cluster::TlsTransport> transport_;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, std::function<void(const peer::PeerAnswer&)>> unanswered_;
  std::vector<peer::Armed> armed_;
  std::uint64_t seq_ = 0;
  SourceHandle next_renewal_;
  SourceHandle again_;
};

}  // namespace usblease::bench
