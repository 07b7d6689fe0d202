#include "daemon/store/etcd_calls.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/text.h"
#include "daemon/store/etcd_codec.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kWaitingCallsMax = 4096;
constexpr std::size_t kWaitingBytesMax = 64UL * 1024 * 1024;
constexpr std::size_t kReadsMax = 64;                        // under way at once
constexpr std::int64_t kPageEntries = 512;                   // at most 34 MB
constexpr std::size_t kRequestBytesMax = 8UL * 1024 * 1024;  // etcd's own limit may be lower (1.5 MiB by default)
constexpr std::size_t kDamagedMax = 16;                      // remembered by name

std::size_t bytes_of(const Txn& txn) {
  std::size_t bytes = sizeof(Txn);
  for (const Guard& guard : txn.guards) bytes += sizeof(Guard) + guard.key.size();
  for (const Write& write : txn.writes) {
    bytes += sizeof(Write) + write.key.size() + (write.value ? write.value->size() : 0);
  }
  return bytes;
}

milliseconds left(EtcdCalls::Clock::time_point deadline) {
  return std::max(std::chrono::duration_cast<milliseconds>(deadline - EtcdCalls::Clock::now()), milliseconds(1));
}

}  // namespace

struct EtcdCalls::Call {
  Clock::time_point deadline;
  // A transaction …
  std::function<void(TxnResult)> committed;
  Txn txn;
  std::size_t bytes = 0;
  bool owned = false;
  // … or a read, with what its pages have brought so far.
  std::function<void(ReadResult)> was_read;
  std::string prefix;
  ReadResult result;
  std::string next_key;
  std::string last_error;

  [[nodiscard]] bool is_commit() const { return committed != nullptr; }
};

EtcdCalls::EtcdCalls(EtcdLoop& loop, EtcdEndpoints& endpoints, EtcdLease& lease, const EtcdOptions& options,
                     std::function<void()> health_changed)
    : loop_(loop),
      endpoints_(endpoints),
      lease_(lease),
      prefix_(options.key_prefix),
      health_changed_(std::move(health_changed)) {}

void EtcdCalls::commit(Txn txn, Clock::time_point deadline, std::function<void(TxnResult)> done) {
  auto call = std::make_shared<Call>();
  call->deadline = deadline;
  call->committed = std::move(done);
  call->owned = std::any_of(txn.writes.begin(), txn.writes.end(),
                            [](const Write& write) { return write.owned && write.value.has_value(); });
  call->bytes = bytes_of(txn);
  call->txn = std::move(txn);
  enqueue(std::move(call));
}

void EtcdCalls::read(std::string prefix, Clock::time_point deadline, std::function<void(ReadResult)> done) {
  auto call = std::make_shared<Call>();
  call->deadline = deadline;
  call->was_read = std::move(done);
  call->prefix = std::move(prefix);
  enqueue(std::move(call));
}

void EtcdCalls::enqueue(CallPtr call) {
  if (closing_) return refuse(call, "the store is being closed");
  if (waiting_.size() >= kWaitingCallsMax || waiting_bytes_ + call->bytes > kWaitingBytesMax) {
    return refuse(call, "too many calls wait; try again later");
  }
  waiting_bytes_ += call->bytes;
  waiting_.push_back(std::move(call));
  pump();
}

void EtcdCalls::pump() {
  while (!waiting_.empty()) {
    const CallPtr call = waiting_.front();
    waiting_.pop_front();
    waiting_bytes_ -= call->bytes;
    if (start(call)) continue;
    waiting_bytes_ += call->bytes;
    waiting_.push_front(call);
    break;
  }
  arm_deadline();
}

// False: not yet.
bool EtcdCalls::start(const CallPtr& call) {
  if (committing_) return false;
  if (!call->is_commit() && reading_ >= kReadsMax) return false;
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!endpoint) return false;
  if (!call->is_commit()) {
    ++reading_;
    start_page(call, endpoint);
    return true;
  }
  const std::int64_t lease_id = call->owned ? lease_.want() : 0;
  if (call->owned && lease_id == 0) return false;
  start_commit(call, endpoint, lease_id);
  return true;
}

// Transactions

void EtcdCalls::start_commit(const CallPtr& call, const EtcdEndpointPtr& endpoint, std::int64_t lease_id) {
  const etcdserverpb::TxnRequest request = encode_txn(call->txn, prefix_, lease_id);
  const std::size_t bytes = request.ByteSizeLong();
  if (bytes > kRequestBytesMax) {
    call->committed({Outcome::kRefused, Cause::kTooLarge, 0,
                     "this transaction has " + std::to_string(bytes) + " bytes (at most " +
                         std::to_string(kRequestBytesMax) + ")"});
    return;
  }
  committing_ = true;
  start_unary<etcdserverpb::TxnResponse>(
      loop_, endpoint, left(call->deadline), EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->kv->PrepareAsyncTxn(context, request, queue);
      },
      [this, call, endpoint, lease_id](const grpc::Status& status, const etcdserverpb::TxnResponse& response) {
        committed(call, endpoint, lease_id, status, response);
        committing_ = false;  // only now: what follows must not overtake it
        ended();
      });
}

void EtcdCalls::committed(const CallPtr& call, const EtcdEndpointPtr& endpoint, std::int64_t lease_id,
                          const grpc::Status& status, const etcdserverpb::TxnResponse& response) {
  if (status.ok()) {
    endpoints_.succeeded(endpoint);
    return call->committed(decode_txn(response, call->txn));
  }
  if (etcd_fault(status) == EtcdFault::kNotBegun) {
    endpoints_.doubt(endpoint, etcd_message(status));
    call->last_error = endpoint->address + ": " + etcd_message(status);
    return again(call);
  }
  call->committed(commit_error(endpoint, status, lease_id));
}

TxnResult EtcdCalls::commit_error(const EtcdEndpointPtr& endpoint, const grpc::Status& status, std::int64_t lease_id) {
  const std::string why = endpoint->address + ": " + etcd_message(status);
  const auto refused = [&](Cause cause, const std::string& advice) {
    return TxnResult{Outcome::kRefused, cause, 0, why + advice};
  };
  switch (etcd_fault(status)) {
    case EtcdFault::kNoSpace:
      endpoints_.note_no_space();
      return refused(Cause::kNoSpace, "; nothing can be written until etcd has room again");
    case EtcdFault::kTooLarge:
      return refused(Cause::kTooLarge, "; raise etcd's --max-request-bytes and --max-txn-ops");
    case EtcdFault::kLeaseGone:
      lease_.lost(lease_id);
      return refused(Cause::kFailed, "; the owner's lease had run out, a new one is asked for: try again");
    case EtcdFault::kDenied:
      return refused(Cause::kFailed, "; etcd's users are not supported: it must admit this certificate");
    case EtcdFault::kCorrupt:
    case EtcdFault::kRefused:
      return refused(Cause::kFailed, "");
    case EtcdFault::kNone:
    case EtcdFault::kNotBegun:
    case EtcdFault::kCompacted:
    case EtcdFault::kNotYet:
    case EtcdFault::kNotFound:
    case EtcdFault::kUnknown:
      break;
  }
  endpoints_.doubt(endpoint, etcd_message(status));
  return {Outcome::kUnknown, Cause::kFailed, 0, why + "; it is not known whether the transaction happened"};
}

// Reads: page after page, all at the revision of the first.

void EtcdCalls::start_page(const CallPtr& call, const EtcdEndpointPtr& endpoint) {
  const etcdserverpb::RangeRequest request =
      encode_range(prefix_ + call->prefix, call->next_key, kPageEntries, call->result.revision);
  start_unary<etcdserverpb::RangeResponse>(
      loop_, endpoint, left(call->deadline), EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->kv->PrepareAsyncRange(context, request, queue);
      },
      [this, call, endpoint](const grpc::Status& status, const etcdserverpb::RangeResponse& response) {
        got_page(call, endpoint, status, response);
      });
}

void EtcdCalls::got_page(const CallPtr& call, const EtcdEndpointPtr& endpoint, const grpc::Status& status,
                         const etcdserverpb::RangeResponse& response) {
  if (status.ok()) {
    endpoints_.succeeded(endpoint);
    return take_page(call, endpoint, response);
  }
  call->last_error = endpoint->address + ": " + etcd_message(status);
  const EtcdFault fault = etcd_fault(status);
  if (fault == EtcdFault::kDenied || fault == EtcdFault::kRefused || fault == EtcdFault::kCorrupt) {
    return end_read(call, {false, 0, {}, "etcd: " + call->last_error});
  }
  // History was dropped between two pages: from the beginning.
  if (fault == EtcdFault::kCompacted) {
    call->result = {};
    call->next_key.clear();
  } else {
    endpoints_.doubt(endpoint, etcd_message(status));
  }
  --reading_;
  again(call);
  ended();
}

void EtcdCalls::take_page(const CallPtr& call, const EtcdEndpointPtr& endpoint,
                          const etcdserverpb::RangeResponse& response) {
  ReadResult& result = call->result;
  if (result.revision == 0) result.revision = static_cast<std::uint64_t>(response.header().revision());
  for (const etcdserverpb::KeyValue& kv : response.kvs()) {
    auto entry = decode_entry(kv, prefix_);
    if (!entry) {
      if (damaged_.size() < kDamagedMax) damaged_.insert(kv.key());
      log::error("a record in etcd is damaged", {{"ERROR", entry.error().message}});
      return end_read(call, {false, 0, {}, "etcd: " + entry.error().message});
    }
    result.entries.push_back(std::move(*entry));
  }
  if (response.more() && response.kvs_size() > 0) {
    // The least key behind the last one.
    call->next_key = response.kvs(response.kvs_size() - 1).key() + '\0';
    return start_page(call, endpoint);
  }
  // What was damaged here is not any more.
  std::erase_if(damaged_, [&](const std::string& key) { return key.starts_with(prefix_ + call->prefix); });
  result.ok = true;
  end_read(call, std::move(result));
}

void EtcdCalls::end_read(const CallPtr& call, ReadResult result) {
  --reading_;
  health_changed_();
  call->was_read(std::move(result));
  ended();
}

// What both share

// It has done nothing, so it may begin once more, at its old place. When its time is over it ends there.
void EtcdCalls::again(const CallPtr& call) {
  if (closing_) return refuse(call, "the store is being closed");
  waiting_bytes_ += call->bytes;
  waiting_.push_front(call);
}

void EtcdCalls::ended() {
  if (closing_ && !committing_ && reading_ == 0) {
    if (closed_) std::exchange(closed_, nullptr)();
    return;
  }
  pump();
}

void EtcdCalls::refuse(const CallPtr& call, const std::string& why) {
  if (call->is_commit()) {
    call->committed({Outcome::kRefused, Cause::kFailed, 0, "etcd: the transaction never began: " + why});
  } else {
    call->was_read({false, 0, {}, "etcd: nothing could be read: " + why});
  }
}

std::string EtcdCalls::why_waiting(const Call& call) const {
  if (!call.last_error.empty()) return call.last_error;
  std::string problem = endpoints_.problem();
  if (!problem.empty()) return problem;
  return "no answer to the calls before it";
}

void EtcdCalls::arm_deadline() {
  deadline_.cancel();
  if (waiting_.empty()) return;
  const auto first = std::min_element(waiting_.begin(), waiting_.end(),
                                      [](const CallPtr& a, const CallPtr& b) { return a->deadline < b->deadline; });
  deadline_ = loop_.run_at((*first)->deadline, [this] { expire(); });
}

void EtcdCalls::expire() {
  const auto now = Clock::now();
  std::deque<CallPtr> over;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if ((*it)->deadline > now) {
      ++it;
      continue;
    }
    waiting_bytes_ -= (*it)->bytes;
    over.push_back(std::move(*it));
    it = waiting_.erase(it);
  }
  for (const CallPtr& call : over) refuse(call, why_waiting(*call));
  pump();
}

void EtcdCalls::close(std::function<void()> done) {
  closing_ = true;
  closed_ = std::move(done);
  deadline_.cancel();
  waiting_bytes_ = 0;
  for (const CallPtr& call : std::exchange(waiting_, {})) refuse(call, "the store is being closed");
  ended();
}

std::string EtcdCalls::damage() const {
  if (damaged_.empty()) return {};
  return "etcd: record \"" + escape_text(*damaged_.begin()) +
         "\" is damaged, so nothing is read; put a backup back, or delete the record if it is known what it was";
}

}  // namespace usblease::store
