// Transactions and reads on etcd, in the order in which they were called.
//
// etcd serves each call on its own, so the order is made here: one transaction is under way at a time, and a read
// begins after the transactions that were called before it have ended. A transaction is sent once. Only one of which it
// is certain that it never began (the member had no leader, was a learner, did not take it) goes to another member.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_lease.h"
#include "daemon/store/etcd_loop.h"
#include "daemon/store/store.h"

namespace usblease::store {

// On the loop's thread; the answers are given there too.
class EtcdCalls {
 public:
  EtcdCalls(EtcdLoop& loop, EtcdEndpoints& endpoints, EtcdLease& lease, const EtcdOptions& options,
            std::function<void()> health_changed);

  using Clock = EtcdLoop::Clock;
  void commit(Txn txn, Clock::time_point deadline, std::function<void(TxnResult)> done);
  void read(std::string prefix, Clock::time_point deadline, std::function<void(ReadResult)> done);

  // A member became fit, or there is a lease now: what waits may go on.
  void pump();

  // What waits is refused; `done` when what is under way has ended.
  void close(std::function<void()> done);

  [[nodiscard]] std::string damage() const;  // empty: none found

 private:
  struct Call;
  using CallPtr = std::shared_ptr<Call>;

  void enqueue(CallPtr call);
  bool start(const CallPtr& call);
  void start_commit(const CallPtr& call, const EtcdEndpointPtr& endpoint, std::int64_t lease_id);
  void committed(const CallPtr& call, const EtcdEndpointPtr& endpoint, std::int64_t lease_id,
                 const grpc::Status& status, const etcdserverpb::TxnResponse& response);
  TxnResult commit_error(const EtcdEndpointPtr& endpoint, const grpc::Status& status, std::int64_t lease_id);
  void start_page(const CallPtr& call, const EtcdEndpointPtr& endpoint);
  void got_page(const CallPtr& call, const EtcdEndpointPtr& endpoint, const grpc::Status& status,
                const etcdserverpb::RangeResponse& response);
  void take_page(const CallPtr& call, const EtcdEndpointPtr& endpoint, const etcdserverpb::RangeResponse& response);
  void again(const CallPtr& call);
  void end_commit(const CallPtr& call, TxnResult result);
  void end_read(const CallPtr& call, ReadResult result);
  void refuse(const CallPtr& call, const std::string& why);
  void expire();
  void arm_deadline();
  void ended();
  [[nodiscard]] std::string why_waiting(const Call& call) const;

  EtcdLoop& loop_;
  EtcdEndpoints& endpoints_;
  EtcdLease& lease_;
  const std::string prefix_;
  const std::function<void()> health_changed_;
  std::deque<CallPtr> waiting_;
  std::size_t waiting_bytes_ = 0;
  EtcdTimer deadline_;
  bool committing_ = false;
  std::size_t reading_ = 0;
  std::set<std::string> damaged_;
  std::function<void()> closed_;
  bool closing_ = false;
};

}  // namespace usblease::store
