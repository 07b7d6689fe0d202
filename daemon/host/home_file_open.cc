// The home file's way from the disk: apart from the rest, so that the simulator can bring a disk of its own.
#include <fcntl.h>
#include <glib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/glib_ptr.h"
#include "daemon/host/home_codec.h"
#include "daemon/host/home_file.h"

namespace usblease::host {
namespace {

Result<UniqueFd> take_directory(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno("cannot open the state directory " + directory, errno);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno("cannot lock " + directory, errno);
    return fail(ErrorCode::kRefused,
                directory + " is in use by another usbleased; stop it, or give this one a" + " state_dir= of its own");
  }
  return fd;
}

// kNotFound when there is none.
Result<std::string> read_bounded(int directory_fd, const std::string& name, const std::string& path) {
  const UniqueFd fd(openat(directory_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno == ENOENT) return fail(ErrorCode::kNotFound, path + " does not exist");
  if (!fd) return fail_errno("cannot open " + path, errno);
  struct stat status {};
  if (fstat(fd.get(), &status) != 0) return fail_errno("cannot stat " + path, errno);
  if (!S_ISREG(status.st_mode)) return fail(ErrorCode::kRefused, path + " is not a file; move it away");
  std::string bytes(std::min<std::size_t>(static_cast<std::size_t>(status.st_size), kHomeFileBytesMax + 1), '\0');
  std::size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t got = ::read(fd.get(), bytes.data() + have, bytes.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("cannot read " + path, errno);
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  bytes.resize(have);
  return bytes;
}

}  // namespace

Result<std::unique_ptr<HomeFile>> HomeFile::open(const std::string& path, const std::string& host_id) {
  const GChars directory(g_path_get_dirname(path.c_str()));
  const GChars name(g_path_get_basename(path.c_str()));
  auto fd = take_directory(directory.get());
  if (!fd) return tl::unexpected(fd.error());
  auto bytes = read_bounded(fd->get(), name.get(), path);
  if (!bytes && bytes.error().code != ErrorCode::kNotFound) return tl::unexpected(bytes.error());
  Result<home::HomeFile> home = bytes ? decode_home(*bytes, host_id, path) : new_home(host_id);
  if (!home) return tl::unexpected(home.error());
  auto writer = std::make_unique<FileWriter>(std::move(*fd), name.get());
  return std::unique_ptr<HomeFile>(new HomeFile(path, std::move(*home), std::move(writer)));
}

}  // namespace usblease::host
