#include "tests/bench/etcd_locks.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <iterator>

#include "etcd.grpc.pb.h"
#include "etcd_lock.grpc.pb.h"

namespace usblease::bench {
namespace {

constexpr std::int64_t kLeaseTtlS = 60;  // the default of etcd's own client library for sessions

std::string content_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::shared_ptr<grpc::Channel> connect(const EtcdAccess& access) {
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = content_of(access.ca_file);
  tls.pem_cert_chain = content_of(access.cert_file);
  tls.pem_private_key = content_of(access.key_file);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // or all clients would share one connection
  return grpc::CreateCustomChannel(access.endpoint, grpc::SslCredentials(tls), arguments);
}

// Calls `method` of `stub` and takes no answer but a good one.
template <typename Stub, typename Request, typename Response>
Result<void> call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response& response, const char* what) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (status.ok()) return {};
  return fail(ErrorCode::kInternal, std::string("etcd's ") + what + ": " + status.error_message());
}

}  // namespace

struct EtcdLocks::Impl {
  explicit Impl(const EtcdAccess& access) : channel(connect(access)), kv(channel), lease(channel), lock(channel) {}

  Result<std::int64_t> grant(std::int64_t ttl_s) {
    etcdserverpb::LeaseGrantRequest request;
    request.set_ttl(ttl_s);
    etcdserverpb::LeaseGrantResponse response;
    if (auto done = call(lease, &etcdserverpb::Lease::Stub::LeaseGrant, request, response, "LeaseGrant"); !done)
      return tl::unexpected(done.error());
    return response.id();
  }

  std::shared_ptr<grpc::Channel> channel;
  etcdserverpb::KV::Stub kv;
  etcdserverpb::Lease::Stub lease;
  v3lockpb::Lock::Stub lock;
  std::int64_t lease_id = 0;
  std::string key;  // of the lock that is held
};

EtcdLocks::EtcdLocks(const EtcdAccess& access) : impl_(std::make_unique<Impl>(access)) {}
EtcdLocks::~EtcdLocks() = default;

Result<void> EtcdLocks::acquire_with_lease(const std::string& name) {
  if (auto kept = keep_lease(kLeaseTtlS); !kept) return kept;
  return acquire(name);
}

Result<void> EtcdLocks::release_with_lease() {
  if (auto released = release(); !released) return released;
  etcdserverpb::LeaseRevokeRequest request;
  request.set_id(impl_->lease_id);
  etcdserverpb::LeaseRevokeResponse response;
  return call(impl_->lease, &etcdserverpb::Lease::Stub::LeaseRevoke, request, response, "LeaseRevoke");
}

Result<void> EtcdLocks::keep_lease(std::int64_t ttl_s) {
  auto id = impl_->grant(ttl_s);
  if (!id) return tl::unexpected(id.error());
  impl_->lease_id = *id;
  return {};
}

Result<void> EtcdLocks::acquire(const std::string& name) {
  v3lockpb::LockRequest request;
  request.set_name(name);
  request.set_lease(impl_->lease_id);
  v3lockpb::LockResponse response;
  auto locked = call(impl_->lock, &v3lockpb::Lock::Stub::Lock, request, response, "Lock");
  if (locked) impl_->key = response.key();
  return locked;
}

Result<void> EtcdLocks::release() {
  v3lockpb::UnlockRequest request;
  request.set_key(impl_->key);
  v3lockpb::UnlockResponse response;
  return call(impl_->lock, &v3lockpb::Lock::Stub::Unlock, request, response, "Unlock");
}

Result<void> EtcdLocks::guarded_put(const std::string& key) {
  etcdserverpb::TxnRequest request;
  etcdserverpb::Compare& guard = *request.add_compare();
  guard.set_key(key + "/guard");
  guard.set_target(etcdserverpb::Compare::VERSION);
  guard.set_result(etcdserverpb::Compare::EQUAL);
  guard.set_version(0);  // is not there
  etcdserverpb::PutRequest& put = *request.add_success()->mutable_request_put();
  put.set_key(key);
  put.set_value(std::string(256, 'x'));
  etcdserverpb::TxnResponse response;
  return call(impl_->kv, &etcdserverpb::KV::Stub::Txn, request, response, "Txn");
}

}  // namespace usblease::bench
