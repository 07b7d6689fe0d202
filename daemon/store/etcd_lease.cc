#include "daemon/store/etcd_lease.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/log.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kGrantBound{1000};
constexpr milliseconds kRetry{50};

// One renewal: a stream of one request and one response.
struct Renewal {
  grpc::ClientContext context;
  etcdserverpb::LeaseKeepAliveResponse response;
  grpc::Status status;
  std::unique_ptr<
      grpc::ClientAsyncReaderWriter<etcdserverpb::LeaseKeepAliveRequest, etcdserverpb::LeaseKeepAliveResponse>>
      stream;
};

// Whatever fails in between, Finish says why.
template <typename Done>
void start_renewal(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::int64_t id, milliseconds bound, Done done) {
  auto renewal = std::make_shared<Renewal>();
  prepare_context(renewal->context, bound, EtcdNeeds::kLeader);
  endpoint->calls.insert(&renewal->context);
  const auto finish = [&loop, renewal, endpoint, done] {
    renewal->stream->Finish(&renewal->status, loop.step([renewal, endpoint, done](bool) {
      endpoint->calls.erase(&renewal->context);
      done(renewal->status, renewal->response);
    }));
  };
  renewal->stream = endpoint->lease->PrepareAsyncLeaseKeepAlive(&renewal->context, loop.queue());
  renewal->stream->StartCall(loop.step([&loop, renewal, id, finish](bool started) {
    if (!started) return finish();
    etcdserverpb::LeaseKeepAliveRequest request;
    request.set_id(id);
    renewal->stream->WriteLast(request, grpc::WriteOptions(), loop.step([&loop, renewal, finish](bool written) {
      if (!written) return finish();
      renewal->stream->Read(&renewal->response, loop.step([renewal, finish](bool read) {
        // An answer is enough: the stream is not waited for.
        if (read) renewal->context.TryCancel();
        finish();
      }));
    }));
  }));
}

}  // namespace

EtcdLease::EtcdLease(EtcdLoop& loop, EtcdEndpoints& endpoints, std::uint32_t ttl_ms, std::function<void()> changed)
    : loop_(loop),
      endpoints_(endpoints),
      ttl_s_((ttl_ms + 999) / 1000),
      changed_(std::move(changed)),
      ttl_(std::chrono::seconds(ttl_s_)) {}

std::int64_t EtcdLease::want() {
  if (id_ == 0) grant();
  return id_;
}

void EtcdLease::lost(std::int64_t id) {
  if (id == 0 || id != id_ || closed_) return;
  log::warning("the owner's lease in etcd has run out; asking for a new one");
  id_ = 0;
  next_.cancel();
  grant();
}

void EtcdLease::grant() {
  if (closed_ || granting_) return;
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!endpoint) {
    next_ = loop_.run_after(kRetry, [this] { grant(); });
    return;
  }
  granting_ = true;
  etcdserverpb::LeaseGrantRequest request;
  request.set_ttl(ttl_s_);
  start_unary<etcdserverpb::LeaseGrantResponse>(
      loop_, endpoint, kGrantBound, EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->lease->PrepareAsyncLeaseGrant(context, request, queue);
      },
      [this, endpoint](const grpc::Status& status, const etcdserverpb::LeaseGrantResponse& response) {
        granting_ = false;
        granted(endpoint, status, response);
      });
}

// One that was granted and whose answer was lost runs out by itself: nothing hangs on it.
void EtcdLease::granted(const EtcdEndpointPtr& endpoint, const grpc::Status& status,
                        const etcdserverpb::LeaseGrantResponse& response) {
  if (closed_) return;
  if (!status.ok()) {
    endpoints_.doubt(endpoint, "it grants no lease (" + etcd_message(status) + ")");
    next_ = loop_.run_after(kRetry, [this] { grant(); });
    return;
  }
  id_ = response.id();
  ttl_ = std::chrono::seconds(std::max<std::int64_t>(response.ttl(), 1));
  next_ = loop_.run_after(third(), [this] { renew(); });
  changed_();
}

void EtcdLease::renew() {
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!endpoint) {
    next_ = loop_.run_after(kRetry, [this] { renew(); });
    return;
  }
  start_renewal(
      loop_, endpoint, id_, third(),
      [this, endpoint, id = id_](const grpc::Status& status, const etcdserverpb::LeaseKeepAliveResponse& response) {
        renewed(endpoint, id, status, response);
      });
}

void EtcdLease::renewed(const EtcdEndpointPtr& endpoint, std::int64_t id, const grpc::Status& status,
                        const etcdserverpb::LeaseKeepAliveResponse& response) {
  if (closed_ || id != id_) return;
  if (response.id() != id) {
    // No answer: so it is not known how the lease is.
    endpoints_.doubt(endpoint, "it does not renew a lease (" + etcd_message(status) + ")");
    next_ = loop_.run_after(kRetry, [this] { renew(); });
    return;
  }
  if (response.ttl() <= 0) return lost(id);
  next_ = loop_.run_after(third(), [this] { renew(); });
}

void EtcdLease::close(milliseconds bound, std::function<void()> done) {
  closed_ = true;
  next_.cancel();
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (id_ == 0 || !endpoint) return done();
  etcdserverpb::LeaseRevokeRequest request;
  request.set_id(std::exchange(id_, 0));
  start_unary<etcdserverpb::LeaseRevokeResponse>(
      loop_, endpoint, bound, EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->lease->PrepareAsyncLeaseRevoke(context, request, queue);
      },
      [done = std::move(done)](const grpc::Status&, const etcdserverpb::LeaseRevokeResponse&) { done(); });
}

}  // namespace usblease::store
