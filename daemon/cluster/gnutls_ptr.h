// RAII and errors for what GnuTLS allocates. Private to daemon/cluster/.
#pragma once

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common/error.h"
#include "common/glib_ptr.h"
#include "daemon/cluster/identity.h"

namespace usblease::cluster {

template <typename Handle, auto Free>
using GnutlsPtr = std::unique_ptr<std::remove_pointer_t<Handle>, Freer<Free>>;

using CrtPtr = GnutlsPtr<gnutls_x509_crt_t, gnutls_x509_crt_deinit>;
using CrlPtr = GnutlsPtr<gnutls_x509_crl_t, gnutls_x509_crl_deinit>;
using CrqPtr = GnutlsPtr<gnutls_x509_crq_t, gnutls_x509_crq_deinit>;
using PrivkeyPtr = GnutlsPtr<gnutls_x509_privkey_t, gnutls_x509_privkey_deinit>;
using PubkeyPtr = GnutlsPtr<gnutls_pubkey_t, gnutls_pubkey_deinit>;
using CredentialsPtr = GnutlsPtr<gnutls_certificate_credentials_t, gnutls_certificate_free_credentials>;
using PriorityPtr = GnutlsPtr<gnutls_priority_t, gnutls_priority_deinit>;
using SessionPtr = GnutlsPtr<gnutls_session_t, gnutls_deinit>;

// A view as GnuTLS takes it; it does not write through it.
inline gnutls_datum_t datum(std::string_view bytes) {
  return {const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data())),
          static_cast<unsigned int>(bytes.size())};
}

// Owner of bytes that GnuTLS returns.
class DatumOut {
 public:
  DatumOut() = default;
  DatumOut(const DatumOut&) = delete;
  DatumOut& operator=(const DatumOut&) = delete;
  ~DatumOut() { gnutls_free(datum_.data); }
  gnutls_datum_t* out() { return &datum_; }
  [[nodiscard]] std::string text() const { return {reinterpret_cast<const char*>(datum_.data), datum_.size}; }

 private:
  gnutls_datum_t datum_{};
};

inline tl::unexpected<Error> fail_gnutls(ErrorCode code, const std::string& what, int error) {
  return fail(code, what + ": " + gnutls_strerror(error));
}

// Empty on failure, which can only be a lack of memory.
template <typename Ptr, typename Handle>
Ptr make_gnutls(int (*init)(Handle*)) {
  Handle handle = nullptr;
  return init(&handle) == 0 ? Ptr(handle) : Ptr();
}

// Of certificates.cc, for the other files here. All certificates of a PEM text; kBadInput: none, damaged, or more than
// `max`.
Result<std::vector<CrtPtr>> parse_certificates(std::string_view pem, std::size_t max);
Result<std::string> to_pem(gnutls_x509_crt_t certificate);
Result<CertifiedHost> certified_host_of(gnutls_x509_crt_t certificate);
// kBadInput: the key cannot be read.
Result<bool> key_belongs_to(gnutls_x509_crt_t certificate, std::string_view key_pem);

}  // namespace usblease::cluster
