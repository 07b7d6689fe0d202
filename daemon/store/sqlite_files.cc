#include "daemon/store/sqlite_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "common/text.h"
#include "daemon/store/bytes.h"
#include "daemon/store/envelope.h"

namespace usblease::store {
namespace {

constexpr std::string_view kMarkKey = "usblease database mark";
constexpr std::size_t kDatabaseIdBytes = 32;
constexpr std::size_t kMarkPayloadBytes = kDatabaseIdBytes + 8;
constexpr std::size_t kMarkBytesMax = 256;

std::string encode(const Mark& mark) {
  std::string payload = mark.database_id;
  put_be(payload, mark.revision);
  return seal(kMarkKey, payload);
}

tl::unexpected<Error> mark_damaged(const std::string& path, const std::string& how) {
  return fail(ErrorCode::kRefused, path + " is damaged (" + how +
                                       "), so it is not known whether the database lost transactions. Check the disk. "
                                       "If the database is known to be the newest, remove " +
                                       path + " and start again; else put both back from one backup");
}

std::string read_holder(int fd) {
  std::array<char, 32> text{};
  const ssize_t got = pread(fd, text.data(), text.size() - 1, 0);
  std::string pid(text.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  while (!pid.empty() && pid.back() == '\n') pid.pop_back();
  return pid.empty() ? "another process" : "process " + escape_text(pid);
}

}  // namespace

Result<UniqueFd> take_lock(const std::string& database) {
  const std::string path = database + ".lock";
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("cannot open " + path, errno);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno("cannot lock " + path, errno);
    return fail(ErrorCode::kRefused, database + " is in use by " + read_holder(fd.get()) +
                                         ": two daemons cannot share one database. Stop that one, or give this one "
                                         "another state directory");
  }
  const std::string pid = std::to_string(getpid()) + "\n";
  // Only for the message above: a full disk may leave it empty.
  if (ftruncate(fd.get(), 0) != 0 || pwrite(fd.get(), pid.data(), pid.size(), 0) < 0) return fd;
  return fd;
}

Result<std::optional<Mark>> read_mark(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) return std::nullopt;
  if (!fd) return fail_errno("cannot open " + path, errno);
  std::string bytes(kMarkBytesMax, '\0');
  const ssize_t got = pread(fd.get(), bytes.data(), bytes.size(), 0);
  if (got < 0) return fail_errno("cannot read " + path, errno);
  bytes.resize(static_cast<std::size_t>(got));
  const auto payload = unseal(kMarkKey, bytes);
  if (!payload) return mark_damaged(path, payload.error().message);
  if (payload->size() != kMarkPayloadBytes) return mark_damaged(path, "it has another length than a mark");
  return Mark{payload->substr(0, kDatabaseIdBytes), get_be<std::uint64_t>(*payload, kDatabaseIdBytes)};
}

Result<MarkFile> MarkFile::create(const std::string& path, const Mark& mark) {
  const std::string fresh = path + ".new";
  UniqueFd fd(::open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("cannot create " + fresh, errno);
  MarkFile file(path, std::move(fd));
  if (auto written = file.write(mark); !written) return tl::unexpected(written.error());
  if (auto synced = file.sync(); !synced) return tl::unexpected(synced.error());
  if (rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("cannot rename " + fresh, errno);
  if (auto synced = sync_directory_of(path); !synced) return tl::unexpected(synced.error());
  return file;
}

Result<MarkFile> MarkFile::open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return fail_errno("cannot open " + path, errno);
  return MarkFile(path, std::move(fd));
}

Result<void> MarkFile::write(const Mark& mark) {
  const std::string bytes = encode(mark);
  // One write into one page: a kill leaves the old mark or the new one.
  const ssize_t done = pwrite(fd_.get(), bytes.data(), bytes.size(), 0);
  if (done == static_cast<ssize_t>(bytes.size())) return {};
  return fail_errno("cannot write " + path_, done < 0 ? errno : ENOSPC);
}

Result<void> MarkFile::sync() {
  if (fsync(fd_.get()) != 0) return fail_errno("cannot sync " + path_, errno);
  return {};
}

Result<void> sync_directory_of(const std::string& path) {
  std::string directory = std::filesystem::path(path).parent_path().string();
  if (directory.empty()) directory = ".";
  const UniqueFd fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || fsync(fd.get()) != 0) return fail_errno("cannot sync " + directory, errno);
  return {};
}

}  // namespace usblease::store
