#include "daemon/store/etcd_snapshot.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/fd.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

constexpr std::size_t kDigestBytes = 32;

struct ChecksumFree {
  void operator()(GChecksum* checksum) const { g_checksum_free(checksum); }
};

// The file as it comes in. etcd ends it with the SHA-256 of what is before, so the last bytes are held back.
class SnapshotFile {
 public:
  explicit SnapshotFile(std::string path) : path_(std::move(path)), sha_(g_checksum_new(G_CHECKSUM_SHA256)) {}
  SnapshotFile(const SnapshotFile&) = delete;
  SnapshotFile& operator=(const SnapshotFile&) = delete;
  ~SnapshotFile() { discard(); }

  // Unless it is complete. Before whoever waits is told: then nothing of it is left.
  void discard() {
    if (fd_ && !complete_) ::unlink(path_.c_str());
    fd_.reset();
  }

  Result<void> create() {
    fd_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd_) return fail_errno("etcd's snapshot: cannot create " + path_, errno);
    return {};
  }

  Result<void> add(const std::string& blob) {
    for (std::size_t at = 0; at < blob.size();) {
      const ssize_t written = ::write(fd_.get(), blob.data() + at, blob.size() - at);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return fail_errno("etcd's snapshot: cannot write " + path_, errno);
      at += static_cast<std::size_t>(written);
    }
    bytes_ += blob.size();
    tail_ += blob;
    if (tail_.size() > kDigestBytes) {
      const std::size_t body = tail_.size() - kDigestBytes;
      g_checksum_update(sha_.get(), reinterpret_cast<const guchar*>(tail_.data()), static_cast<gssize>(body));
      tail_.erase(0, body);
    }
    return {};
  }

  Result<EtcdSnapshot> finish() {
    std::string digest(kDigestBytes, '\0');
    gsize size = digest.size();
    g_checksum_get_digest(sha_.get(), reinterpret_cast<guint8*>(digest.data()), &size);
    if (tail_ != digest) {
      return fail(ErrorCode::kUnavailable, "etcd's snapshot did not arrive whole: its SHA-256 is wrong; try again");
    }
    if (::fsync(fd_.get()) != 0) return fail_errno("etcd's snapshot: cannot sync " + path_, errno);
    complete_ = true;
    return EtcdSnapshot{bytes_};
  }

 private:
  std::string path_;
  std::unique_ptr<GChecksum, ChecksumFree> sha_;
  UniqueFd fd_;
  std::string tail_;
  std::uint64_t bytes_ = 0;
  bool complete_ = false;
};

class Snapshot : public std::enable_shared_from_this<Snapshot> {
 public:
  Snapshot(EtcdLoop& loop, EtcdEndpointPtr endpoint, std::string path, std::function<void(Result<EtcdSnapshot>)> done)
      : loop_(loop), endpoint_(std::move(endpoint)), file_(std::move(path)), done_(std::move(done)) {}

  void start(std::chrono::milliseconds bound) {
    if (auto created = file_.create(); !created) return done_(tl::unexpected(created.error()));
    prepare_context(context_, bound, EtcdNeeds::kNothing);
    endpoint_->calls.insert(&context_);
    reader_ = endpoint_->maintenance->PrepareAsyncSnapshot(&context_, etcdserverpb::SnapshotRequest(), loop_.queue());
    reader_->StartCall(loop_.step([self = shared_from_this()](bool ok) { ok ? self->read() : self->finish(); }));
  }

 private:
  void read() {
    reader_->Read(&part_, loop_.step([self = shared_from_this()](bool ok) { ok ? self->take() : self->finish(); }));
  }

  void take() {
    written_ = file_.add(part_.blob());
    if (written_) return read();
    context_.TryCancel();
    finish();
  }

  void finish() {
    reader_->Finish(&status_, loop_.step([self = shared_from_this()](bool) { self->finished(); }));
  }

  void finished() {
    endpoint_->calls.erase(&context_);
    Result<EtcdSnapshot> result = outcome();
    file_.discard();
    done_(std::move(result));
  }

  Result<EtcdSnapshot> outcome() {
    if (!written_) return tl::unexpected(written_.error());
    if (status_.ok()) return file_.finish();
    return fail(ErrorCode::kUnavailable,
                "etcd's snapshot from " + endpoint_->address + " did not arrive: " + etcd_message(status_));
  }

  EtcdLoop& loop_;
  EtcdEndpointPtr endpoint_;
  SnapshotFile file_;
  std::function<void(Result<EtcdSnapshot>)> done_;
  grpc::ClientContext context_;
  grpc::Status status_;
  etcdserverpb::SnapshotResponse part_;
  Result<void> written_;
  std::unique_ptr<grpc::ClientAsyncReader<etcdserverpb::SnapshotResponse>> reader_;
};

}  // namespace

void start_snapshot(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::string path, std::chrono::milliseconds bound,
                    std::function<void(Result<EtcdSnapshot>)> done) {
  std::make_shared<Snapshot>(loop, endpoint, std::move(path), std::move(done))->start(bound);
}

}  // namespace usblease::store
