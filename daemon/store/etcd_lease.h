// The owner's lease in etcd: owned keys hang on it and vanish when nobody renews it. Granted at its first use, renewed
// three times in its ttl by a call of its own, so that a silent member costs one of them; granted anew when it was
// lost.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_loop.h"

namespace usblease::store {

// On the loop's thread.
class EtcdLease {
 public:
  // `changed`: there is one now.
  EtcdLease(EtcdLoop& loop, EtcdEndpoints& endpoints, std::uint32_t ttl_ms, std::function<void()> changed);

  // 0: there is none now; it is being asked for.
  std::int64_t want();

  // etcd said that this one has run out.
  void lost(std::int64_t id);

  // Nothing new begins; `done` when it is revoked, or after `bound`.
  void close(std::chrono::milliseconds bound, std::function<void()> done);

 private:
  void grant();
  void granted(const EtcdEndpointPtr& endpoint, const grpc::Status& status,
               const etcdserverpb::LeaseGrantResponse& response);
  void renew();
  void renewed(const EtcdEndpointPtr& endpoint, std::int64_t id, const grpc::Status& status,
               const etcdserverpb::LeaseKeepAliveResponse& response);
  [[nodiscard]] std::chrono::milliseconds third() const { return ttl_ / 3; }

  EtcdLoop& loop_;
  EtcdEndpoints& endpoints_;
  const std::int64_t ttl_s_;
  const std::function<void()> changed_;
  std::chrono::milliseconds ttl_;  // that etcd gave
  std::int64_t id_ = 0;
  bool granting_ = false;
  bool closed_ = false;
  EtcdTimer next_;
};

}  // namespace usblease::store
