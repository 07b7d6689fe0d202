// Keys and certificates of a host, as they lie in STATE_DIR/cluster, and how they are made. GnuTLS; Ed25519 throughout.
//
// A host's certificate: CN = host id; SAN: DNS = host id and given names, IP = given addresses, URI =
// usblease:cluster/CLUSTER_ID/host/HOST_ID; EKU server and client. etcd and gRPC accept it as it is.
// All texts are PEM.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::cluster {

// File names below STATE_DIR/cluster.
inline constexpr const char* kAuthoritiesFile = "ca.pem";    // one CA, or two during a rotation
inline constexpr const char* kAuthorityKeyFile = "ca.key";   // only where `cluster init` ran; 0600
inline constexpr const char* kCertificateFile = "host.pem";  // followed by the CA that signed it
inline constexpr const char* kRevocationsFile = "crl.pem";   // certificates of the CA that are not to be believed
inline constexpr const char* kKeyFile = "host.key";          // 0600

inline constexpr std::uint64_t kAuthorityLifeS = std::uint64_t{3650} * 86'400;
inline constexpr std::uint64_t kCertificateLifeS = std::uint64_t{365} * 86'400;
// Certificates begin to be valid that long before they are made, for hosts whose clocks are behind.
inline constexpr std::uint64_t kClockToleranceS = 3'600;
inline constexpr std::size_t kPemBytesMax = 64 * 1024;
inline constexpr std::size_t kAuthoritiesMax = 2;
inline constexpr std::size_t kAlternativeNamesMax = 16;

struct Authority {
  std::string certificate;
  std::string key;
};

// What a signer puts into a certificate. Nothing of this is taken from the request that it signs.
struct CertificateNames {
  std::string cluster_id;
  std::string host_id;
  std::vector<std::string> names;  // DNS names and IP addresses beside the host id; at most kAlternativeNamesMax
};

struct Validity {
  std::uint64_t begin_unix_s = 0;
  std::uint64_t end_unix_s = 0;
};
// From kClockToleranceS ago to life_s from now.
Validity valid_from_now(std::uint64_t life_s);

struct HostRequest {
  std::string key;      // never leaves the host that made it
  std::string request;  // PKCS #10
};

// All that a host needs to prove who it is. Checked as a whole by load_identity and make_identity.
struct Identity {
  std::string cluster_id;
  std::string host_id;
  std::string authorities;  // whom we trust
  std::string certificate;  // ours, then the CA that signed it
  std::string key;
  Validity validity;  // of our certificate
};

// Who a certificate of our kind names.
struct CertifiedHost {
  std::string cluster_id;
  std::string host_id;
};

// A new, self-signed CA.
Result<Authority> make_authority(const std::string& cluster_id,
                                 const Validity& validity = valid_from_now(kAuthorityLifeS));

// A new key, and the request to have it certified.
Result<HostRequest> make_host_request(const std::string& host_id);

// Checks that whoever made the request holds its key (Ed25519), then certifies `names` for it: the host's certificate.
// It never outlives the CA. kBadInput: the request or a name is wrong.
Result<std::string> sign_host_request(const Authority& authority, std::string_view request,
                                      const CertificateNames& names,
                                      const Validity& validity = valid_from_now(kCertificateLifeS));

// Checks all of it: that the key belongs to the certificate, that one of the CAs signed it, that it names a host and a
// cluster and is valid now. kRefused, with what to do.
Result<Identity> make_identity(std::string authorities, const std::string& certificate, std::string key);

// From the files of `directory`. kNotFound: this host is in no cluster (neither certificate nor key is there). A change
// of key and certificate that a crash has cut is finished or undone.
Result<Identity> load_identity(const std::string& directory);

// Writes ca.pem, host.pem, host.key durably (fsync; key 0600; directory made 0700 if absent). After a crash at any
// point load_identity finds the old or the new one whole.
Result<void> save_identity(const std::string& directory, const Identity& identity);

// Rotation of the CA: first both are trusted everywhere, then hosts get certificates of the new one, then the old is
// dropped. `authorities` with `added` in front; already there: unchanged. kBadInput: a third one.
Result<std::string> add_authority(std::string_view authorities, std::string_view added);
// The CA that signed `certificate`, alone: what is left when a rotation ends.
Result<std::string> authority_of(std::string_view authorities, std::string_view certificate);

// A list of revoked certificates, signed. `signer` is the CA; or, for a list that names nobody until the CA's comes,
// any certificate with its key: etcd does not look who signed it.
Result<std::string> make_revocations(const Authority& signer, const std::set<std::string>& serials);
// The serial numbers in such a list, 32 lower-case hex digits each. kBadInput: it cannot be read.
Result<std::set<std::string>> revoked_in(std::string_view revocations);

// The serial number of the first certificate in the text, 32 lower-case hex digits.
Result<std::string> serial_of(std::string_view certificate);

// SHA-256 of the first certificate in the text, 64 lower-case hex digits.
Result<std::string> fingerprint(std::string_view certificate);

// The URI of the names in the first certificate. kBadInput: none, or not one of ours. Does not check who signed.
Result<CertifiedHost> certified_host(std::string_view certificate);

// One small file, durably: beside it, fsync, rename, fsync of the directory. At most kPemBytesMax.
Result<void> write_durably(const std::string& directory, const std::string& name, std::string_view content,
                           unsigned mode);
// At most kPemBytesMax. kNotFound: absent.
Result<std::string> read_small_file(const std::string& directory, const std::string& name);

}  // namespace usblease::cluster
