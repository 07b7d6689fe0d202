#include "cli/backup_file.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "common/fd.h"
#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::string_view kFirstLine = "usblease-backup 1\n";
constexpr std::size_t kHashBytes = 32;

std::string sha256_of(std::string_view bytes) {
  const GPtr<GChecksum, g_checksum_free> checksum(g_checksum_new(G_CHECKSUM_SHA256));
  g_checksum_update(checksum.get(), reinterpret_cast<const guchar*>(bytes.data()), static_cast<gssize>(bytes.size()));
  std::array<guint8, kHashBytes> digest{};
  gsize length = digest.size();
  g_checksum_get_digest(checksum.get(), digest.data(), &length);
  return {reinterpret_cast<const char*>(digest.data()), length};
}

Result<void> write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd, bytes.data(), bytes.size());
    if (count > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      return fail_errno("cannot write " + escape_text(path), errno);
    }
  }
  if (fsync(fd) != 0) return fail_errno("cannot write " + escape_text(path), errno);
  return {};
}

Result<std::string> read_all(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return fail(ErrorCode::kNotFound, "there is no file " + escape_text(path));
  if (!fd) return fail_errno("cannot open " + escape_text(path), errno);
  std::string bytes;
  std::array<char, 65'536> chunk{};
  for (;;) {
    const ssize_t count = read(fd.get(), chunk.data(), chunk.size());
    if (count == 0) return bytes;
    if (count > 0) {
      bytes.append(chunk.data(), static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      return fail_errno("cannot read " + escape_text(path), errno);
    }
    if (bytes.size() > kBackupBytesMax)
      return fail(ErrorCode::kBadInput, escape_text(path) + " has more than 64 MiB: it is no backup");
  }
}

}  // namespace

Result<void> write_backup_file(const std::string& path, const api::BackupReply& backup) {
  std::string bytes(kFirstLine);
  backup.AppendToString(&bytes);
  bytes += sha256_of(bytes);
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd && errno == EEXIST)
    return fail(ErrorCode::kRefused, escape_text(path) + " is there already; name a new file");
  if (!fd) return fail_errno("cannot make " + escape_text(path), errno);
  auto written = write_all(fd.get(), bytes, path);
  if (!written) unlink(path.c_str());
  return written;
}

Result<api::BackupReply> read_backup_file(const std::string& path) {
  const auto bytes = read_all(path);
  if (!bytes) return tl::unexpected(bytes.error());
  const auto bad = [&](const std::string& why) {
    return fail(ErrorCode::kBadInput, escape_text(path) + " " + why + "; use another backup");
  };
  if (!std::string_view(*bytes).starts_with("usblease-backup ")) return bad("is not a backup of usblease");
  if (!std::string_view(*bytes).starts_with(kFirstLine)) return bad("was written by a newer usblease");
  if (bytes->size() < kFirstLine.size() + kHashBytes) return bad("was cut");
  const std::string_view signed_part(bytes->data(), bytes->size() - kHashBytes);
  if (sha256_of(signed_part) != bytes->substr(signed_part.size())) return bad("was cut or changed");
  api::BackupReply backup;
  const std::string_view body = signed_part.substr(kFirstLine.size());
  if (!backup.ParseFromArray(body.data(), static_cast<int>(body.size()))) return bad("does not parse");
  if (backup.header().records() != static_cast<std::uint64_t>(backup.records_size())) return bad("is not complete");
  return backup;
}

}  // namespace usblease::cli
