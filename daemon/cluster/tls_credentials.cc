#include "daemon/cluster/tls_credentials.h"

#include <array>
#include <cstring>
#include <utility>

namespace usblease::cluster {
namespace {

// Nothing older than TLS 1.3 is offered or accepted.
constexpr const char* kPriority = "NORMAL:-VERS-ALL:+VERS-TLS1.3";
constexpr unsigned kChainMax = 3;
constexpr std::size_t kHandshakeBytesMax = 16 * 1024;

using TrustListPtr = GnutlsPtr<gnutls_x509_trust_list_t, [](gnutls_x509_trust_list_t list) {
  // The certificates belong to others.
  gnutls_x509_trust_list_deinit(list, 0);
}>;

Refusal refusal_of(unsigned status) {
  if ((status & (GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNER_NOT_CA)) != 0)
    return {GNUTLS_A_UNKNOWN_CA, "its certificate is not of this cluster's CA"};
  if ((status & GNUTLS_CERT_EXPIRED) != 0)
    return {GNUTLS_A_CERTIFICATE_EXPIRED, "its certificate has expired, or a clock is wrong"};
  if ((status & GNUTLS_CERT_NOT_ACTIVATED) != 0)
    return {GNUTLS_A_CERTIFICATE_EXPIRED, "its certificate is not valid yet: a clock is wrong"};
  if ((status & GNUTLS_CERT_PURPOSE_MISMATCH) != 0)
    return {GNUTLS_A_BAD_CERTIFICATE, "its certificate is not for this use"};
  DatumOut text;
  gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, text.out(), 0);
  return {GNUTLS_A_BAD_CERTIFICATE, text.text()};
}

Result<std::vector<CrtPtr>> shown_by_peer(gnutls_session_t session) {
  unsigned count = 0;
  const gnutls_datum_t* const raw = gnutls_certificate_get_peers(session, &count);
  if (raw == nullptr || count == 0) return fail(ErrorCode::kDenied, "it has shown no certificate");
  if (count > kChainMax) return fail(ErrorCode::kDenied, "it has shown too many certificates");
  std::vector<CrtPtr> chain;
  for (unsigned i = 0; i < count; ++i) {
    chain.push_back(make_gnutls<CrtPtr>(gnutls_x509_crt_init));
    if (!chain.back()) return fail(ErrorCode::kInternal, "out of memory for its certificate");
    if (const int error = gnutls_x509_crt_import(chain.back().get(), &raw[i], GNUTLS_X509_FMT_DER); error < 0)
      return fail_gnutls(ErrorCode::kDenied, "its certificate cannot be read", error);
  }
  return chain;
}

std::optional<Refusal> check_chain(const std::vector<gnutls_x509_crt_t>& trusted,
                                   const std::vector<gnutls_x509_crt_t>& chain, bool peer_is_server) {
  gnutls_x509_trust_list_t raw = nullptr;
  if (gnutls_x509_trust_list_init(&raw, 0) < 0) return Refusal{GNUTLS_A_INTERNAL_ERROR, "out of memory"};
  const TrustListPtr list(raw);
  const int added = gnutls_x509_trust_list_add_cas(raw, trusted.data(), static_cast<unsigned>(trusted.size()), 0);
  if (added != static_cast<int>(trusted.size())) return Refusal{GNUTLS_A_INTERNAL_ERROR, "the CA cannot be used"};
  std::string purpose = peer_is_server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
  gnutls_typed_vdata_st use{GNUTLS_DT_KEY_PURPOSE_OID, reinterpret_cast<unsigned char*>(purpose.data()), 0};
  unsigned status = 0;
  auto certificates = chain;
  const int error = gnutls_x509_trust_list_verify_crt2(
      raw, certificates.data(), static_cast<unsigned>(certificates.size()), &use, 1, 0, &status, nullptr);
  if (error < 0) return Refusal{GNUTLS_A_BAD_CERTIFICATE, gnutls_strerror(error)};
  if (status != 0) return refusal_of(status);
  return std::nullopt;
}

std::vector<gnutls_x509_crt_t> borrowed(const std::vector<CrtPtr>& certificates) {
  std::vector<gnutls_x509_crt_t> list;
  list.reserve(certificates.size());
  for (const CrtPtr& each : certificates) list.push_back(each.get());
  return list;
}

// Called when the ClientHello was read: what the client wants decides whether it must show a certificate.
int choose_protocol(gnutls_session_t session) {
  gnutls_datum_t chosen{};
  if (gnutls_alpn_get_selected_protocol(session, &chosen) < 0) return GNUTLS_E_NO_APPLICATION_PROTOCOL;
  const std::string_view name(reinterpret_cast<const char*>(chosen.data), chosen.size);
  gnutls_certificate_server_set_request(session, name == kAlpnJoin ? GNUTLS_CERT_IGNORE : GNUTLS_CERT_REQUIRE);
  return 0;
}

int offer_protocols(gnutls_session_t session, TlsRole role) {
  const std::array<gnutls_datum_t, 2> both = {datum(kAlpnHosts), datum(kAlpnJoin)};
  switch (role) {
    case TlsRole::kServer:
      return gnutls_alpn_set_protocols(session, both.data(), 2, GNUTLS_ALPN_MANDATORY | GNUTLS_ALPN_SERVER_PRECEDENCE);
    case TlsRole::kClient:
      return gnutls_alpn_set_protocols(session, both.data(), 1, GNUTLS_ALPN_MANDATORY);
    case TlsRole::kJoinClient:
      return gnutls_alpn_set_protocols(session, both.data() + 1, 1, GNUTLS_ALPN_MANDATORY);
  }
  return GNUTLS_E_INVALID_REQUEST;
}

}  // namespace

Result<std::shared_ptr<TlsCredentials>> TlsCredentials::make() {
  std::shared_ptr<TlsCredentials> made(
      new TlsCredentials);  // NOLINT(cppcoreguidelines-owning-memory): private constructor
  made->credentials_ = make_gnutls<CredentialsPtr>(gnutls_certificate_allocate_credentials);
  gnutls_priority_t priority = nullptr;
  if (const int error = gnutls_priority_init(&priority, kPriority, nullptr); error < 0)
    return fail_gnutls(ErrorCode::kInternal, "GnuTLS does not know TLS 1.3", error);
  made->priority_.reset(priority);
  if (!made->credentials_) return fail(ErrorCode::kInternal, "out of memory for TLS");
  return made;
}

Result<std::shared_ptr<const TlsCredentials>> TlsCredentials::of_host(const Identity& identity) {
  auto made = make();
  if (!made) return tl::unexpected(made.error());
  auto trusted = parse_certificates(identity.authorities, kAuthoritiesMax);
  if (!trusted) return tl::unexpected(trusted.error());
  (*made)->trusted_ = std::move(*trusted);
  (*made)->cluster_id_ = identity.cluster_id;
  const gnutls_datum_t certificate = datum(identity.certificate);
  const gnutls_datum_t key = datum(identity.key);
  const int error = gnutls_certificate_set_x509_key_mem2((*made)->credentials_.get(), &certificate, &key,
                                                         GNUTLS_X509_FMT_PEM, nullptr, 0);
  if (error < 0) return fail_gnutls(ErrorCode::kRefused, "this host's certificate cannot be used", error);
  return *made;
}

Result<std::shared_ptr<const TlsCredentials>> TlsCredentials::of_joiner(std::string cluster_id,
                                                                        std::string authority_fingerprint) {
  auto made = make();
  if (!made) return tl::unexpected(made.error());
  (*made)->cluster_id_ = std::move(cluster_id);
  (*made)->pinned_ = std::move(authority_fingerprint);
  return *made;
}

Result<SessionPtr> TlsCredentials::make_session(TlsRole role, VerifyFunction verify) const {
  const bool server = role == TlsRole::kServer;
  gnutls_session_t raw = nullptr;
  // Without tickets: every connection proves itself anew.
  const unsigned flags = (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS;
  int error = gnutls_init(&raw, flags);
  if (error < 0) return fail_gnutls(ErrorCode::kInternal, "cannot begin TLS", error);
  SessionPtr session(raw);
  error = gnutls_priority_set(raw, priority_.get());
  if (error >= 0) error = gnutls_credentials_set(raw, GNUTLS_CRD_CERTIFICATE, credentials_.get());
  if (error >= 0) error = offer_protocols(raw, role);
  if (error < 0) return fail_gnutls(ErrorCode::kInternal, "cannot begin TLS", error);
  if (server) {
    gnutls_certificate_server_set_request(raw, GNUTLS_CERT_REQUIRE);
    gnutls_handshake_set_post_client_hello_function(raw, choose_protocol);
  }
  gnutls_session_set_verify_function(raw, verify);
  gnutls_handshake_set_max_packet_length(raw, kHandshakeBytesMax);
  return session;
}

tl::expected<TlsCredentials::Verified, Refusal> TlsCredentials::verify(gnutls_session_t session,
                                                                       bool peer_is_server) const {
  const auto refuse = [](std::string why) { return tl::unexpected(Refusal{GNUTLS_A_BAD_CERTIFICATE, std::move(why)}); };
  const auto chain = shown_by_peer(session);
  if (!chain) return refuse(chain.error().message);
  auto authority = to_pem(chain->back().get());
  if (!authority) return refuse(authority.error().message);
  std::vector<gnutls_x509_crt_t> trusted = borrowed(trusted_);
  if (!pinned_.empty()) {
    const auto shown = fingerprint(*authority);
    if (!shown || *shown != pinned_)
      return tl::unexpected(
          Refusal{GNUTLS_A_UNKNOWN_CA, "its CA is not the one whose fingerprint the join token carries"});
    trusted = {chain->back().get()};
  }
  if (auto refusal = check_chain(trusted, borrowed(*chain), peer_is_server)) return tl::unexpected(std::move(*refusal));
  auto host = certified_host_of(chain->front().get());
  if (!host) return refuse(host.error().message);
  if (host->cluster_id != cluster_id_)
    return refuse("its certificate names host " + host->host_id + " of another cluster, " + host->cluster_id);
  return Verified{std::move(*host), std::move(*authority)};
}

}  // namespace usblease::cluster
