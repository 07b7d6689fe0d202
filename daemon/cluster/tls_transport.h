// The Transport between real hosts: TCP and TLS 1.3, both sides authenticated by certificates of the cluster's CA
// (identity.h), ALPN usblease/1. docs/protocol.md, "Between hosts".
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/error.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/transport.h"

namespace usblease::cluster {

struct TlsTransportOptions {
  std::string listen;                    // "ADDRESS:PORT", "[V6]:PORT", "*:PORT" (all addresses); port 0: any free one
  std::uint32_t handshake_ms = 5'000;    // from connecting to authenticated
  std::uint32_t silent_ms = 4'000;       // a peer without a sign of life is given up after that: about 2 renewals
  std::uint32_t retry_min_ms = 50;       // waits between attempts double from here …
  std::uint32_t retry_max_ms = 2'000;    // … to here; each is shortened at random by up to a half
  std::uint32_t join_ms = 30'000;        // an answer to a join must come within
  std::size_t accepted_max = 2'048;      // authenticated
  std::size_t unauthenticated_max = 64;  // beyond that the address that holds most of them loses its oldest
  std::size_t joining_max = 16;          // joins that wait for their answer
  std::size_t output_bytes_max = std::size_t{4} * 1024 * 1024;  // queued for one peer
};

class TlsTransport : public Transport {
 public:
  // Listens. kUnavailable: the address is taken or is not one of this host's. kBadInput: `listen` is no address.
  static Result<std::unique_ptr<TlsTransport>> open(const Identity& identity, TlsTransportOptions options,
                                                    TransportEvents events);
  ~TlsTransport() override;
  TlsTransport(const TlsTransport&) = delete;
  TlsTransport& operator=(const TlsTransport&) = delete;

  // Connections from now on use this one (rotation); open ones stay. kRefused: of another host or cluster.
  Result<void> set_identity(const Identity& identity);

  [[nodiscard]] std::uint16_t port() const;  // that it listens on

  void set_peers(std::vector<Peer> peers) override;
  bool ask(const std::string& host_id, std::string payload) override;
  bool answer(AcceptedId id, std::string payload) override;
  void drop(AcceptedId id) override;
  void forbid(const std::string& host_id) override;
  void permit(const std::string& host_id) override;
  [[nodiscard]] bool connected(const std::string& host_id) const override;

 private:
  class Impl;
  explicit TlsTransport(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace usblease::cluster
