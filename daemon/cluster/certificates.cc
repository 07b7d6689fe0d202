// How keys, requests and certificates are made and read (identity.h).
#include <arpa/inet.h>
#include <gnutls/crypto.h>

#include <algorithm>
#include <array>
#include <utility>

#include "common/boottime.h"
#include "common/text.h"
#include "daemon/cluster/gnutls_ptr.h"
#include "daemon/cluster/identity.h"

namespace usblease::cluster {
namespace {

constexpr std::string_view kUriPrefix = "usblease:cluster/";
constexpr std::string_view kUriHost = "/host/";
constexpr const char* kOrganization = "usblease";
constexpr std::size_t kSerialBytes = 16;
constexpr std::size_t kDnsNameMax = 253;
constexpr unsigned kSubjectAltNamesMax = 64;

tl::unexpected<Error> out_of_memory() { return fail(ErrorCode::kInternal, "out of memory for a certificate"); }

// Remembers the first failure of a row of calls.
class Steps {
 public:
  Steps& operator<<(int result) {
    if (result < 0 && error_ == 0) error_ = result;
    return *this;
  }
  [[nodiscard]] Result<void> result(const char* what) const {
    if (error_ == 0) return {};
    return fail_gnutls(ErrorCode::kInternal, what, error_);
  }

 private:
  int error_ = 0;
};

Result<PrivkeyPtr> make_key() {
  auto key = make_gnutls<PrivkeyPtr>(gnutls_x509_privkey_init);
  if (!key) return out_of_memory();
  if (const int error = gnutls_x509_privkey_generate(key.get(), GNUTLS_PK_EDDSA_ED25519, 0, 0); error < 0)
    return fail_gnutls(ErrorCode::kInternal, "cannot make a key", error);
  return key;
}

Result<std::string> key_to_pem(gnutls_x509_privkey_t key) {
  DatumOut pem;
  // PKCS #8: what Go and OpenSSL read too.
  const int error = gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, nullptr, GNUTLS_PKCS_PLAIN, pem.out());
  if (error < 0) return fail_gnutls(ErrorCode::kInternal, "cannot write a key as text", error);
  return pem.text();
}

Result<PrivkeyPtr> parse_key(std::string_view pem) {
  auto key = make_gnutls<PrivkeyPtr>(gnutls_x509_privkey_init);
  if (!key) return out_of_memory();
  const gnutls_datum_t text = datum(pem);
  if (const int error = gnutls_x509_privkey_import2(key.get(), &text, GNUTLS_X509_FMT_PEM, nullptr, 0); error < 0)
    return fail_gnutls(ErrorCode::kBadInput, "the private key cannot be read", error);
  return key;
}

void set_name(Steps& steps, gnutls_x509_crt_t crt, const char* oid, std::string_view value) {
  steps << gnutls_x509_crt_set_dn_by_oid(crt, oid, 0, value.data(), static_cast<unsigned>(value.size()));
}

void set_serial_and_validity(Steps& steps, gnutls_x509_crt_t crt, const Validity& validity) {
  std::array<unsigned char, kSerialBytes> serial{};
  steps << gnutls_rnd(GNUTLS_RND_NONCE, serial.data(), serial.size());
  serial[0] = static_cast<unsigned char>((serial[0] & 0x7FU) | 0x40U);  // a positive number of full length
  steps << gnutls_x509_crt_set_version(crt, 3) << gnutls_x509_crt_set_serial(crt, serial.data(), serial.size())
        << gnutls_x509_crt_set_activation_time(crt, static_cast<time_t>(validity.begin_unix_s))
        << gnutls_x509_crt_set_expiration_time(crt, static_cast<time_t>(validity.end_unix_s));
}

void set_key_id(Steps& steps, gnutls_x509_crt_t crt) {
  std::array<unsigned char, 64> id{};
  std::size_t size = id.size();
  steps << gnutls_x509_crt_get_key_id(crt, 0, id.data(), &size)
        << gnutls_x509_crt_set_subject_key_id(crt, id.data(), size);
}

void set_authority_key_id(Steps& steps, gnutls_x509_crt_t crt, gnutls_x509_crt_t issuer) {
  std::array<unsigned char, 64> id{};
  std::size_t size = id.size();
  steps << gnutls_x509_crt_get_subject_key_id(issuer, id.data(), &size, nullptr)
        << gnutls_x509_crt_set_authority_key_id(crt, id.data(), size);
}

void add_alternative(Steps& steps, gnutls_x509_crt_t crt, gnutls_x509_subject_alt_name_t type, std::string_view value) {
  steps << gnutls_x509_crt_set_subject_alt_name(crt, type, value.data(), static_cast<unsigned>(value.size()),
                                                GNUTLS_FSAN_APPEND);
}

bool is_dns_name(std::string_view name) {
  return !name.empty() && name.size() <= kDnsNameMax && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return g_ascii_isalnum(c) || c == '.' || c == '-' || c == '_'; });
}

// False: neither an address nor a DNS name.
bool add_given_name(Steps& steps, gnutls_x509_crt_t crt, const std::string& name) {
  std::array<char, sizeof(in6_addr)> address{};
  if (inet_pton(AF_INET, name.c_str(), address.data()) == 1) {
    add_alternative(steps, crt, GNUTLS_SAN_IPADDRESS, {address.data(), sizeof(in_addr)});
  } else if (inet_pton(AF_INET6, name.c_str(), address.data()) == 1) {
    add_alternative(steps, crt, GNUTLS_SAN_IPADDRESS, {address.data(), sizeof(in6_addr)});
  } else if (is_dns_name(name)) {
    add_alternative(steps, crt, GNUTLS_SAN_DNSNAME, name);
  } else {
    return false;
  }
  return true;
}

Result<void> check_ids(const CertificateNames& names) {
  if (!is_identifier(names.cluster_id))
    return fail(ErrorCode::kBadInput, "\"" + escape_text(names.cluster_id.substr(0, 64)) + "\" is not a cluster id");
  if (!is_identifier(names.host_id))
    return fail(ErrorCode::kBadInput,
                "\"" + escape_text(names.host_id.substr(0, 64)) + "\" is not a host id: 1 to 64 of A-Z a-z 0-9 . _ -");
  if (names.names.size() > kAlternativeNamesMax)
    return fail(ErrorCode::kBadInput, "a certificate names at most " + std::to_string(kAlternativeNamesMax) +
                                          " addresses and names of a host; " + std::to_string(names.names.size()) +
                                          " were given");
  return {};
}

// The public key of a request whose maker holds the private one.
Result<PubkeyPtr> requested_key(std::string_view request) {
  const auto refuse = [](int error) {
    return fail_gnutls(ErrorCode::kBadInput, "the certificate request cannot be used", error);
  };
  if (request.size() > kPemBytesMax) return fail(ErrorCode::kBadInput, "the certificate request is too large");
  auto crq = make_gnutls<CrqPtr>(gnutls_x509_crq_init);
  auto key = make_gnutls<PubkeyPtr>(gnutls_pubkey_init);
  if (!crq || !key) return out_of_memory();
  const gnutls_datum_t text = datum(request);
  if (const int error = gnutls_x509_crq_import(crq.get(), &text, GNUTLS_X509_FMT_PEM); error < 0) return refuse(error);
  if (gnutls_x509_crq_get_pk_algorithm(crq.get(), nullptr) != GNUTLS_PK_EDDSA_ED25519)
    return fail(ErrorCode::kBadInput, "the certificate request is not for an Ed25519 key");
  if (const int error = gnutls_x509_crq_verify(crq.get(), 0); error < 0) return refuse(error);
  if (const int error = gnutls_pubkey_import_x509_crq(key.get(), crq.get(), 0); error < 0) return refuse(error);
  return key;
}

Result<void> describe_host(gnutls_x509_crt_t crt, const CertificateNames& names) {
  Steps steps;
  set_name(steps, crt, GNUTLS_OID_X520_ORGANIZATION_NAME, kOrganization);
  set_name(steps, crt, GNUTLS_OID_X520_COMMON_NAME, names.host_id);
  add_alternative(steps, crt, GNUTLS_SAN_URI,
                  std::string(kUriPrefix) + names.cluster_id + std::string(kUriHost) + names.host_id);
  add_alternative(steps, crt, GNUTLS_SAN_DNSNAME, names.host_id);
  for (const std::string& name : names.names) {
    if (name == names.host_id) continue;
    if (!add_given_name(steps, crt, name))
      return fail(ErrorCode::kBadInput,
                  "\"" + escape_text(name.substr(0, 64)) +
                      "\" is neither an IP address nor a DNS name, so no certificate can name it");
  }
  steps << gnutls_x509_crt_set_basic_constraints(crt, 0, -1)
        << gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE)
        << gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_SERVER, 0)
        << gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
  return steps.result("cannot make a certificate");
}

// usblease:cluster/CLUSTER_ID/host/HOST_ID
std::optional<CertifiedHost> parse_uri(std::string_view uri) {
  if (uri.substr(0, kUriPrefix.size()) != kUriPrefix) return std::nullopt;
  uri.remove_prefix(kUriPrefix.size());
  const std::size_t slash = uri.find('/');
  if (slash == std::string_view::npos || uri.substr(slash, kUriHost.size()) != kUriHost) return std::nullopt;
  CertifiedHost host{std::string(uri.substr(0, slash)), std::string(uri.substr(slash + kUriHost.size()))};
  if (!is_identifier(host.cluster_id) || !is_identifier(host.host_id)) return std::nullopt;
  return host;
}

Result<bool> same_key(gnutls_x509_crt_t signer, gnutls_x509_privkey_t key) {
  std::array<unsigned char, 64> of_signer{};
  std::array<unsigned char, 64> of_key{};
  std::size_t signer_size = of_signer.size();
  std::size_t key_size = of_key.size();
  Steps steps;
  steps << gnutls_x509_crt_get_key_id(signer, GNUTLS_KEYID_USE_SHA256, of_signer.data(), &signer_size)
        << gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, of_key.data(), &key_size);
  if (const auto done = steps.result("cannot compare a key with its certificate"); !done)
    return tl::unexpected(done.error());
  return signer_size == key_size &&
         std::equal(of_key.begin(), of_key.begin() + static_cast<long>(key_size), of_signer.begin());
}

}  // namespace

Validity valid_from_now(std::uint64_t life_s) {
  const std::uint64_t now_s = wall_clock_unix_s();
  return {now_s - kClockToleranceS, now_s + life_s};
}

Result<std::vector<CrtPtr>> parse_certificates(std::string_view pem, std::size_t max) {
  if (pem.size() > kPemBytesMax)
    return fail(ErrorCode::kBadInput, "certificates of " + std::to_string(pem.size()) + " bytes; at most " +
                                          std::to_string(kPemBytesMax) + " are allowed");
  gnutls_x509_crt_t* list = nullptr;
  unsigned count = 0;
  const gnutls_datum_t text = datum(pem);
  if (const int error = gnutls_x509_crt_list_import2(&list, &count, &text, GNUTLS_X509_FMT_PEM, 0); error < 0)
    return fail_gnutls(ErrorCode::kBadInput, "the certificate cannot be read", error);
  std::vector<CrtPtr> certificates;
  for (unsigned i = 0; i < count; ++i) certificates.emplace_back(list[i]);
  gnutls_free(list);
  if (certificates.empty() || certificates.size() > max)
    return fail(ErrorCode::kBadInput, std::to_string(certificates.size()) + " certificates in one text; 1 to " +
                                          std::to_string(max) + " are allowed");
  return certificates;
}

Result<std::string> to_pem(gnutls_x509_crt_t certificate) {
  DatumOut pem;
  if (const int error = gnutls_x509_crt_export2(certificate, GNUTLS_X509_FMT_PEM, pem.out()); error < 0)
    return fail_gnutls(ErrorCode::kInternal, "cannot write a certificate as text", error);
  return pem.text();
}

Result<Authority> make_authority(const std::string& cluster_id, const Validity& validity) {
  if (!is_identifier(cluster_id))
    return fail(ErrorCode::kBadInput, "\"" + escape_text(cluster_id.substr(0, 64)) + "\" is not a cluster id");
  auto key = make_key();
  if (!key) return tl::unexpected(key.error());
  const auto crt = make_gnutls<CrtPtr>(gnutls_x509_crt_init);
  if (!crt) return out_of_memory();
  Steps steps;
  set_serial_and_validity(steps, crt.get(), validity);
  set_name(steps, crt.get(), GNUTLS_OID_X520_ORGANIZATION_NAME, kOrganization);
  set_name(steps, crt.get(), GNUTLS_OID_X520_COMMON_NAME, cluster_id);
  steps << gnutls_x509_crt_set_key(crt.get(), key->get()) << gnutls_x509_crt_set_basic_constraints(crt.get(), 1, 0)
        << gnutls_x509_crt_set_key_usage(crt.get(), GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
  set_key_id(steps, crt.get());
  steps << gnutls_x509_crt_sign2(crt.get(), crt.get(), key->get(), GNUTLS_DIG_SHA512, 0);
  if (const auto done = steps.result("cannot make a CA"); !done) return tl::unexpected(done.error());
  auto certificate = to_pem(crt.get());
  auto key_text = key_to_pem(key->get());
  if (!certificate) return tl::unexpected(certificate.error());
  if (!key_text) return tl::unexpected(key_text.error());
  return Authority{std::move(*certificate), std::move(*key_text)};
}

Result<HostRequest> make_host_request(const std::string& host_id) {
  if (!is_identifier(host_id))
    return fail(ErrorCode::kBadInput, "\"" + escape_text(host_id.substr(0, 64)) + "\" is not a host id");
  auto key = make_key();
  if (!key) return tl::unexpected(key.error());
  const auto crq = make_gnutls<CrqPtr>(gnutls_x509_crq_init);
  if (!crq) return out_of_memory();
  DatumOut pem;
  Steps steps;
  steps << gnutls_x509_crq_set_version(crq.get(), 1)
        << gnutls_x509_crq_set_dn_by_oid(crq.get(), GNUTLS_OID_X520_COMMON_NAME, 0, host_id.data(),
                                         static_cast<unsigned>(host_id.size()))
        << gnutls_x509_crq_set_key(crq.get(), key->get())
        << gnutls_x509_crq_sign2(crq.get(), key->get(), GNUTLS_DIG_SHA512, 0)
        << gnutls_x509_crq_export2(crq.get(), GNUTLS_X509_FMT_PEM, pem.out());
  if (const auto done = steps.result("cannot make a certificate request"); !done) return tl::unexpected(done.error());
  auto key_text = key_to_pem(key->get());
  if (!key_text) return tl::unexpected(key_text.error());
  return HostRequest{std::move(*key_text), pem.text()};
}

Result<std::string> sign_host_request(const Authority& authority, std::string_view request,
                                      const CertificateNames& names, const Validity& validity) {
  if (const auto checked = check_ids(names); !checked) return tl::unexpected(checked.error());
  const auto issuers = parse_certificates(authority.certificate, 1);
  if (!issuers) return tl::unexpected(issuers.error());
  const gnutls_x509_crt_t issuer = issuers->front().get();
  const auto issuer_key = parse_key(authority.key);
  if (!issuer_key) return tl::unexpected(issuer_key.error());
  const auto fits = same_key(issuer, issuer_key->get());
  if (!fits) return tl::unexpected(fits.error());
  if (!*fits) return fail(ErrorCode::kRefused, "the CA's key does not belong to the CA's certificate");
  const auto key = requested_key(request);
  if (!key) return tl::unexpected(key.error());
  const auto crt = make_gnutls<CrtPtr>(gnutls_x509_crt_init);
  if (!crt) return out_of_memory();

  const auto issuer_end_s = static_cast<std::uint64_t>(gnutls_x509_crt_get_expiration_time(issuer));
  if (const auto described = describe_host(crt.get(), names); !described) return tl::unexpected(described.error());
  Steps steps;
  set_serial_and_validity(steps, crt.get(), {validity.begin_unix_s, std::min(validity.end_unix_s, issuer_end_s)});
  steps << gnutls_x509_crt_set_pubkey(crt.get(), key->get());
  set_key_id(steps, crt.get());
  set_authority_key_id(steps, crt.get(), issuer);
  steps << gnutls_x509_crt_sign2(crt.get(), issuer, issuer_key->get(), GNUTLS_DIG_SHA512, 0);
  if (const auto done = steps.result("cannot make a certificate"); !done) return tl::unexpected(done.error());
  auto own = to_pem(crt.get());
  if (!own) return tl::unexpected(own.error());
  return *own + authority.certificate;
}

Result<std::string> fingerprint(std::string_view certificate) {
  const auto parsed = parse_certificates(certificate, kAuthoritiesMax + 1);
  if (!parsed) return tl::unexpected(parsed.error());
  std::array<unsigned char, 32> digest{};
  std::size_t size = digest.size();
  if (const int error = gnutls_x509_crt_get_fingerprint(parsed->front().get(), GNUTLS_DIG_SHA256, digest.data(), &size);
      error < 0)
    return fail_gnutls(ErrorCode::kInternal, "cannot make a fingerprint", error);
  std::string text;
  constexpr std::string_view kHex = "0123456789abcdef";
  for (const unsigned char byte : digest) {
    text += kHex[byte >> 4U];
    text += kHex[byte & 0xFU];
  }
  return text;
}

Result<CertifiedHost> certified_host(std::string_view certificate) {
  const auto parsed = parse_certificates(certificate, kAuthoritiesMax + 1);
  if (!parsed) return tl::unexpected(parsed.error());
  return certified_host_of(parsed->front().get());
}

Result<CertifiedHost> certified_host_of(gnutls_x509_crt_t certificate) {
  std::optional<CertifiedHost> found;
  for (unsigned i = 0; i < kSubjectAltNamesMax; ++i) {
    std::array<char, 256> value{};
    std::size_t size = value.size();
    const int type = gnutls_x509_crt_get_subject_alt_name(certificate, i, value.data(), &size, nullptr);
    if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) break;
    if (type != GNUTLS_SAN_URI) continue;  // also one that is longer than any of ours
    auto host = parse_uri({value.data(), size});
    if (!host) continue;
    if (found) return fail(ErrorCode::kBadInput, "its certificate names more than one host");
    found = std::move(host);
  }
  if (!found) return fail(ErrorCode::kBadInput, "its certificate does not name a host of a usblease cluster");
  return *found;
}

Result<bool> key_belongs_to(gnutls_x509_crt_t certificate, std::string_view key_pem) {
  const auto key = parse_key(key_pem);
  if (!key) return tl::unexpected(key.error());
  return same_key(certificate, key->get());
}

}  // namespace usblease::cluster
