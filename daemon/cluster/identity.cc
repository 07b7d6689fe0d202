#include "daemon/cluster/identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "common/boottime.h"
#include "common/fd.h"
#include "common/log.h"
#include "common/text.h"
#include "daemon/cluster/gnutls_ptr.h"

namespace usblease::cluster {
namespace {

// A change of several files is first written beside them under this ending.
constexpr const char* kNext = ".next";
constexpr std::array<const char*, 3> kFiles = {kAuthoritiesFile, kKeyFile,
                                               kCertificateFile};  // in the order of renaming

tl::unexpected<Error> refuse(const std::string& why) {
  return fail(ErrorCode::kRefused, "this host's certificate cannot be used: " + why);
}

Result<void> check_time(const Validity& validity) {
  const std::uint64_t now_s = wall_clock_unix_s();
  if (now_s < validity.begin_unix_s)
    return refuse("it is valid from " + format_unix_time(validity.begin_unix_s) + " only; is this host's clock right?");
  if (now_s > validity.end_unix_s)
    return refuse("it expired at " + format_unix_time(validity.end_unix_s) +
                  "; if this host's clock is right, let it join the cluster anew");
  return {};
}

// The CA among `authorities` that signed the certificate; null: none.
gnutls_x509_crt_t signer_of(const std::vector<CrtPtr>& authorities, gnutls_x509_crt_t certificate) {
  for (const CrtPtr& authority : authorities) {
    unsigned status = 0;
    gnutls_x509_crt_t list = authority.get();
    // Times are looked at apart, for a better message.
    const int error = gnutls_x509_crt_verify(certificate, &list, 1, GNUTLS_VERIFY_DISABLE_TIME_CHECKS, &status);
    if (error >= 0 && status == 0) return authority.get();
  }
  return nullptr;
}

Result<UniqueFd> open_directory(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return fail(ErrorCode::kNotFound, directory + " does not exist");
  if (!fd) return fail_errno("cannot open " + directory, errno);
  return fd;
}

Result<void> write_file(int directory_fd, const std::string& name, std::string_view content, unsigned mode) {
  const UniqueFd fd(openat(directory_fd, name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("cannot create " + name, errno);
  if (fchmod(fd.get(), mode) != 0) return fail_errno("cannot set the mode of " + name, errno);
  while (!content.empty()) {
    const ssize_t count = ::write(fd.get(), content.data(), content.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno("cannot write " + name, errno);
    content.remove_prefix(static_cast<std::size_t>(count));
  }
  if (fsync(fd.get()) != 0) return fail_errno("cannot fsync " + name, errno);
  return {};
}

Result<void> sync_directory(int directory_fd, const std::string& directory) {
  if (fsync(directory_fd) != 0) return fail_errno("cannot fsync " + directory, errno);
  return {};
}

Result<std::string> read_file(int directory_fd, const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  const UniqueFd fd(openat(directory_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno == ENOENT) return fail(ErrorCode::kNotFound, path + " does not exist");
  if (!fd) return fail_errno("cannot open " + path, errno);
  std::string content(kPemBytesMax + 1, '\0');
  std::size_t have = 0;
  while (have < content.size()) {
    const ssize_t count = ::read(fd.get(), content.data() + have, content.size() - have);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno("cannot read " + path, errno);
    if (count == 0) break;
    have += static_cast<std::size_t>(count);
  }
  if (have > kPemBytesMax)
    return fail(ErrorCode::kRefused, path + " is larger than " + std::to_string(kPemBytesMax) + " bytes");
  content.resize(have);
  return content;
}

struct Texts {
  std::array<std::string, kFiles.size()> of;  // in the order of kFiles
};

// kNotFound: one of them is absent. With `next`, a file that is being replaced counts as what it is to become.
Result<Texts> read_texts(int directory_fd, const std::string& directory, bool next) {
  Texts texts;
  for (std::size_t i = 0; i < kFiles.size(); ++i) {
    auto text = next ? read_file(directory_fd, directory, std::string(kFiles[i]) + kNext)
                     : read_file(directory_fd, directory, kFiles[i]);
    if (!text && next && text.error().code == ErrorCode::kNotFound)
      text = read_file(directory_fd, directory, kFiles[i]);
    if (!text) return tl::unexpected(text.error());
    texts.of[i] = std::move(*text);
  }
  return texts;
}

Result<Identity> identity_of(const Result<Texts>& texts) {
  if (!texts) return tl::unexpected(texts.error());
  return make_identity(texts->of[0], texts->of[2], texts->of[1]);
}

// What is not there any more was renamed before a crash.
Result<void> rename_all(int directory_fd, const std::string& directory) {
  for (const char* name : kFiles) {
    if (renameat(directory_fd, (std::string(name) + kNext).c_str(), directory_fd, name) != 0 && errno != ENOENT)
      return fail_errno("cannot rename " + directory + "/" + name + kNext, errno);
    // One after the other: load_identity relies on the order.
    if (auto synced = sync_directory(directory_fd, directory); !synced) return synced;
  }
  return {};
}

void warn_of_readable_key(int directory_fd, const std::string& directory) {
  struct stat status {};
  if (fstatat(directory_fd, kKeyFile, &status, AT_SYMLINK_NOFOLLOW) == 0 && (status.st_mode & 077) != 0) {
    log::warning(directory + "/" + kKeyFile +
                 " can be read by others; set its mode to 0600, and rotate the certificate");
  }
}

}  // namespace

Result<Identity> make_identity(std::string authorities, const std::string& certificate, std::string key) {
  const auto trusted = parse_certificates(authorities, kAuthoritiesMax);
  if (!trusted) return refuse("of the CA, " + trusted.error().message);
  const auto chain = parse_certificates(certificate, kAuthoritiesMax + 1);
  if (!chain) return refuse(chain.error().message);
  const gnutls_x509_crt_t own = chain->front().get();
  const auto belongs = key_belongs_to(own, key);
  if (!belongs) return refuse(belongs.error().message);
  if (!*belongs) return refuse("its private key is another one");
  const gnutls_x509_crt_t signer = signer_of(*trusted, own);
  if (signer == nullptr) return refuse("no CA in " + std::string(kAuthoritiesFile) + " signed it");
  const auto host = certified_host_of(own);
  if (!host) return refuse(host.error().message);
  const Validity validity{static_cast<std::uint64_t>(gnutls_x509_crt_get_activation_time(own)),
                          static_cast<std::uint64_t>(gnutls_x509_crt_get_expiration_time(own))};
  if (const auto valid = check_time(validity); !valid) return tl::unexpected(valid.error());
  auto own_pem = to_pem(own);
  auto signer_pem = to_pem(signer);
  if (!own_pem) return tl::unexpected(own_pem.error());
  if (!signer_pem) return tl::unexpected(signer_pem.error());
  // With its CA, so that a host that knows only the CA's fingerprint can follow it.
  return Identity{host->cluster_id,       host->host_id,  std::move(authorities),
                  *own_pem + *signer_pem, std::move(key), validity};
}

Result<Identity> load_identity(const std::string& directory) {
  const auto fd = open_directory(directory);
  if (!fd && fd.error().code == ErrorCode::kNotFound)
    return fail(ErrorCode::kNotFound, "this host is in no cluster: " + fd.error().message);
  if (!fd) return tl::unexpected(fd.error());
  auto identity = identity_of(read_texts(fd->get(), directory, false));
  if (!identity) {
    auto next = identity_of(read_texts(fd->get(), directory, true));
    if (next) {
      if (const auto renamed = rename_all(fd->get(), directory); !renamed) return tl::unexpected(renamed.error());
      log::info("finished a change of this host's certificate that was cut off", {{"HOST", next->host_id}});
      identity = std::move(next);
    }
  }
  if (identity) {
    warn_of_readable_key(fd->get(), directory);
    return identity;
  }
  const bool certificate = faccessat(fd->get(), kCertificateFile, F_OK, 0) == 0;
  const bool key = faccessat(fd->get(), kKeyFile, F_OK, 0) == 0;
  if (!certificate && !key)
    return fail(ErrorCode::kNotFound, "this host is in no cluster: " + directory + " holds no certificate");
  return fail(ErrorCode::kRefused, directory + ": " + identity.error().message);
}

Result<void> save_identity(const std::string& directory, const Identity& identity) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("cannot make " + directory, errno);
  const auto fd = open_directory(directory);
  if (!fd) return tl::unexpected(fd.error());
  const std::array<const std::string*, kFiles.size()> texts = {&identity.authorities, &identity.key,
                                                               &identity.certificate};
  for (std::size_t i = 0; i < kFiles.size(); ++i) {
    const unsigned mode = std::string_view(kFiles[i]) == kKeyFile ? 0600 : 0644;
    if (auto written = write_file(fd->get(), std::string(kFiles[i]) + kNext, *texts[i], mode); !written) return written;
  }
  if (auto synced = sync_directory(fd->get(), directory); !synced) return synced;
  return rename_all(fd->get(), directory);
}

Result<std::string> add_authority(std::string_view authorities, std::string_view added) {
  const auto old = parse_certificates(authorities, kAuthoritiesMax);
  const auto fresh = parse_certificates(added, 1);
  if (!old) return tl::unexpected(old.error());
  if (!fresh) return tl::unexpected(fresh.error());
  for (const CrtPtr& each : *old) {
    if (gnutls_x509_crt_equals(each.get(), fresh->front().get()) != 0) return std::string(authorities);
  }
  if (old->size() == kAuthoritiesMax)
    return fail(ErrorCode::kBadInput, "two CAs are trusted already; end the rotation that is under way first");
  auto text = to_pem(fresh->front().get());
  if (!text) return text;
  return *text + std::string(authorities);
}

Result<std::string> authority_of(std::string_view authorities, std::string_view certificate) {
  const auto trusted = parse_certificates(authorities, kAuthoritiesMax);
  const auto chain = parse_certificates(certificate, kAuthoritiesMax + 1);
  if (!trusted) return tl::unexpected(trusted.error());
  if (!chain) return tl::unexpected(chain.error());
  const gnutls_x509_crt_t signer = signer_of(*trusted, chain->front().get());
  if (signer == nullptr) return fail(ErrorCode::kRefused, "none of the CAs signed the certificate");
  return to_pem(signer);
}

Result<void> write_durably(const std::string& directory, const std::string& name, std::string_view content,
                           unsigned mode) {
  if (content.size() > kPemBytesMax)
    return fail(ErrorCode::kBadInput, name + " of " + std::to_string(content.size()) + " bytes; at most " +
                                          std::to_string(kPemBytesMax) + " are allowed");
  const auto fd = open_directory(directory);
  if (!fd) return tl::unexpected(fd.error());
  const std::string next = name + kNext;
  if (auto written = write_file(fd->get(), next, content, mode); !written) return written;
  if (renameat(fd->get(), next.c_str(), fd->get(), name.c_str()) != 0)
    return fail_errno("cannot rename " + directory + "/" + next, errno);
  return sync_directory(fd->get(), directory);
}

Result<std::string> read_small_file(const std::string& directory, const std::string& name) {
  const auto fd = open_directory(directory);
  if (!fd) return tl::unexpected(fd.error());
  return read_file(fd->get(), directory, name);
}

}  // namespace usblease::cluster
