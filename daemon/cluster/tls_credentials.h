// What one side of a TLS connection shows and whom it believes. Private to daemon/cluster/.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/cluster/gnutls_ptr.h"
#include "daemon/cluster/identity.h"

namespace usblease::cluster {

inline constexpr const char* kAlpnHosts = "usblease/1";
inline constexpr const char* kAlpnJoin = "usblease-join/1";

enum class TlsRole : std::uint8_t { kServer, kClient, kJoinClient };

// Why a peer's certificate is not accepted, for our log; the alert tells the peer.
struct Refusal {
  gnutls_alert_description_t alert = GNUTLS_A_BAD_CERTIFICATE;
  std::string why;
};

class TlsCredentials {
 public:
  // Of a host of a cluster: shows its certificate, believes its CAs.
  static Result<std::shared_ptr<const TlsCredentials>> of_host(const Identity& identity);
  // Of a host that is in no cluster: shows nothing, believes the CA with that fingerprint, which the peer must send.
  static Result<std::shared_ptr<const TlsCredentials>> of_joiner(std::string cluster_id,
                                                                 std::string authority_fingerprint);

  // During the handshake, when the peer has shown its certificate: 0, or GNUTLS_E_CERTIFICATE_ERROR.
  using VerifyFunction = int (*)(gnutls_session_t);

  // A session ready for its handshake. It must not outlive the credentials.
  [[nodiscard]] Result<SessionPtr> make_session(TlsRole role, VerifyFunction verify) const;

  struct Verified {
    CertifiedHost host;
    std::string authority;  // PEM: the CA at the end of its chain, if it sent one
  };
  // Checks the chain that the peer of `session` has shown: signed by whom we believe, valid now, for that side's use,
  // and a host of our cluster.
  [[nodiscard]] tl::expected<Verified, Refusal> verify(gnutls_session_t session, bool peer_is_server) const;

 private:
  TlsCredentials() = default;
  static Result<std::shared_ptr<TlsCredentials>> make();

  CredentialsPtr credentials_;
  PriorityPtr priority_;
  std::string cluster_id_;
  std::vector<CrtPtr> trusted_;
  std::string pinned_;  // fingerprint; empty: `trusted_` counts
};

}  // namespace usblease::cluster
