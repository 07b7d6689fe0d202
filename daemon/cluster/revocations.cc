// Lists of revoked certificates (identity.h). For etcd, which reads one at each handshake; usbleased itself refuses a
// host by its name.
#include <algorithm>
#include <array>

#include "common/boottime.h"
#include "daemon/cluster/gnutls_ptr.h"
#include "daemon/cluster/identity.h"

namespace usblease::cluster {
namespace {

constexpr std::size_t kSerialBytes = 16;
constexpr std::string_view kHex = "0123456789abcdef";

std::string to_hex(const unsigned char* bytes, std::size_t size) {
  std::string out;
  for (std::size_t i = 0; i < size; ++i) {
    out += kHex[bytes[i] >> 4U];
    out += kHex[bytes[i] & 0xFU];
  }
  return out;
}

std::array<unsigned char, kSerialBytes> from_hex(std::string_view hex) {
  std::array<unsigned char, kSerialBytes> out{};
  for (std::size_t i = 0; i < out.size(); ++i)
    out.at(i) = static_cast<unsigned char>(kHex.find(hex.at(2 * i)) << 4U | kHex.find(hex.at(2 * i + 1)));
  return out;
}

}  // namespace

Result<std::string> make_revocations(const Authority& signer, const std::set<std::string>& serials) {
  const auto chain = parse_certificates(signer.certificate, kAuthoritiesMax + 1);
  if (!chain) return tl::unexpected(chain.error());
  auto key = make_gnutls<PrivkeyPtr>(gnutls_x509_privkey_init);
  auto crl = make_gnutls<CrlPtr>(gnutls_x509_crl_init);
  if (!key || !crl) return fail(ErrorCode::kInternal, "out of memory for a list of revocations");
  const gnutls_datum_t key_text = datum(signer.key);
  int error = gnutls_x509_privkey_import2(key.get(), &key_text, GNUTLS_X509_FMT_PEM, nullptr, 0);
  const auto step = [&error](int result) { error = error < 0 ? error : result; };
  const auto now_s = static_cast<time_t>(wall_clock_unix_s());
  step(gnutls_x509_crl_set_version(crl.get(), 2));
  step(gnutls_x509_crl_set_this_update(crl.get(), now_s - static_cast<time_t>(kClockToleranceS)));
  step(gnutls_x509_crl_set_next_update(crl.get(), now_s + static_cast<time_t>(kAuthorityLifeS)));
  for (const std::string& serial : serials) {
    const auto bytes = from_hex(serial);
    step(gnutls_x509_crl_set_crt_serial(crl.get(), bytes.data(), bytes.size(), now_s));
  }
  // Each list has a greater number than the one before: seconds since 1970.
  std::array<unsigned char, 8> number{};
  for (std::size_t i = 0; i < number.size(); ++i)
    number.at(i) = static_cast<unsigned char>(static_cast<std::uint64_t>(now_s) >> (8 * (7 - i)));
  step(gnutls_x509_crl_set_number(crl.get(), number.data(), number.size()));
  step(gnutls_x509_crl_sign2(crl.get(), chain->front().get(), key.get(), GNUTLS_DIG_SHA512, 0));
  DatumOut pem;
  step(gnutls_x509_crl_export2(crl.get(), GNUTLS_X509_FMT_PEM, pem.out()));
  if (error < 0) return fail_gnutls(ErrorCode::kInternal, "cannot make a list of revocations", error);
  return pem.text();
}

Result<std::set<std::string>> revoked_in(std::string_view revocations) {
  if (revocations.size() > kPemBytesMax) return fail(ErrorCode::kBadInput, "the list of revocations is too large");
  auto crl = make_gnutls<CrlPtr>(gnutls_x509_crl_init);
  if (!crl) return fail(ErrorCode::kInternal, "out of memory for a list of revocations");
  const gnutls_datum_t text = datum(revocations);
  if (const int error = gnutls_x509_crl_import(crl.get(), &text, GNUTLS_X509_FMT_PEM); error < 0)
    return fail_gnutls(ErrorCode::kBadInput, "the list of revocations cannot be read", error);
  std::set<std::string> out;
  const int count = gnutls_x509_crl_get_crt_count(crl.get());
  for (int i = 0; i < count; ++i) {
    std::array<unsigned char, 64> serial{};
    std::size_t size = serial.size();
    time_t when = 0;
    if (const int error =
            gnutls_x509_crl_get_crt_serial(crl.get(), static_cast<unsigned>(i), serial.data(), &size, &when);
        error < 0)
      return fail_gnutls(ErrorCode::kBadInput, "the list of revocations cannot be read", error);
    out.insert(to_hex(serial.data(), size));
  }
  return out;
}

Result<std::string> serial_of(std::string_view certificate) {
  const auto chain = parse_certificates(certificate, kAuthoritiesMax + 1);
  if (!chain) return tl::unexpected(chain.error());
  std::array<unsigned char, 64> serial{};
  std::size_t size = serial.size();
  if (const int error = gnutls_x509_crt_get_serial(chain->front().get(), serial.data(), &size); error < 0)
    return fail_gnutls(ErrorCode::kBadInput, "the certificate has no serial number", error);
  if (size != kSerialBytes) return fail(ErrorCode::kBadInput, "the certificate's serial number is not one of ours");
  return to_hex(serial.data(), size);
}

}  // namespace usblease::cluster
