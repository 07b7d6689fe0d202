#include "daemon/host/file_writer.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "common/main_loop.h"
#include "daemon/host/worker_thread.h"

namespace usblease::host {
namespace {

tl::unexpected<Error> failed(const std::string& what, const std::string& name, int error_number) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  return fail(full ? ErrorCode::kUnavailable : ErrorCode::kInternal,
              "cannot " + what + " " + name + ": " + g_strerror(error_number) +
                  (full ? "; make room on that file system, then it goes on by itself" : ""));
}

Result<void> write_all(int fd, const std::string& name, const std::string& bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t wrote = ::write(fd, bytes.data() + at, bytes.size() - at);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return failed("write", name, wrote == 0 ? ENOSPC : errno);
    at += static_cast<std::size_t>(wrote);
  }
  if (fsync(fd) != 0) return failed("fsync", name, errno);
  return {};
}

}  // namespace

Result<void> replace_file(int directory_fd, const std::string& name, const std::string& bytes) {
  const std::string temporary = name + ".new";
  // A leftover of a crash goes first: it may be the very reason that there is no room.
  unlinkat(directory_fd, temporary.c_str(), 0);
  const UniqueFd fd(
      openat(directory_fd, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR));
  if (!fd) return failed("create", temporary, errno);
  auto written = write_all(fd.get(), temporary, bytes);
  if (written && renameat(directory_fd, temporary.c_str(), directory_fd, name.c_str()) != 0) {
    written = failed("rename to", name, errno);
  }
  if (!written) {
    unlinkat(directory_fd, temporary.c_str(), 0);
    return written;
  }
  if (fsync(directory_fd) != 0) return failed("fsync the directory of", name, errno);
  return {};
}

FileWriter::FileWriter(UniqueFd directory, std::string name)
    : directory_(std::move(directory)),
      name_(std::move(name)),
      self_(std::make_shared<FileWriter*>(this)),
      thread_(start_worker("home-file", [this] { work(); })) {}

FileWriter::~FileWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void FileWriter::write(std::string bytes, std::function<void(Result<void>)> done) {
  g_assert(!done_);
  done_ = std::move(done);
  {
    const std::lock_guard lock(mutex_);
    job_ = std::move(bytes);
  }
  wake_.notify_one();
}

void FileWriter::finish(Result<void> result) { std::exchange(done_, nullptr)(std::move(result)); }

void FileWriter::work() {
  const std::weak_ptr<FileWriter*> self = self_;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return job_.has_value() || stopping_; });
    if (!job_.has_value()) return;
    const std::string bytes = *std::exchange(job_, std::nullopt);
    lock.unlock();
    auto result = replace_file(directory_.get(), name_, bytes);
    post([self, result = std::move(result)]() mutable {
      if (const auto writer = self.lock()) (*writer)->finish(std::move(result));
    });
    lock.lock();
  }
}

}  // namespace usblease::host
