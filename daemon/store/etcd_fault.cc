#include "daemon/store/etcd_fault.h"

#include <array>
#include <string_view>

#include "common/text.h"

namespace usblease::store {
namespace {

constexpr std::size_t kMessageBytesMax = 300;

struct Known {
  grpc::StatusCode code;
  std::string_view begins;  // of the message
  EtcdFault fault;
};

// etcd tells its errors apart by text alone (etcdserver/api/v3rpc/rpctypes). Only what is certain from its source to be
// said before anything was proposed, or instead of applying it, is here; all else is kUnknown.
constexpr std::array kKnown = {
    // Said by the interceptor, before the call, because we ask for a leader.
    Known{grpc::UNAVAILABLE, "etcdserver: no leader", EtcdFault::kNotBegun},
    Known{grpc::UNAVAILABLE, "etcdserver: rpc not supported for learner", EtcdFault::kNotBegun},
    Known{grpc::UNAVAILABLE, "etcdserver: not capable", EtcdFault::kNotBegun},
    // More is committed than applied.
    Known{grpc::RESOURCE_EXHAUSTED, "etcdserver: too many requests", EtcdFault::kNotBegun},
    Known{grpc::RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", EtcdFault::kNoSpace},
    // The server's gRPC, of a request that it did not take.
    Known{grpc::RESOURCE_EXHAUSTED, "grpc: received message larger than max", EtcdFault::kTooLarge},
    Known{grpc::INVALID_ARGUMENT, "etcdserver: request is too large", EtcdFault::kTooLarge},
    Known{grpc::INVALID_ARGUMENT, "etcdserver: too many operations in txn request", EtcdFault::kTooLarge},
    Known{grpc::INVALID_ARGUMENT, "etcdserver: user name is empty", EtcdFault::kDenied},
    Known{grpc::INVALID_ARGUMENT, "etcdserver:", EtcdFault::kRefused},
    Known{grpc::NOT_FOUND, "etcdserver: requested lease not found", EtcdFault::kLeaseGone},
    Known{grpc::NOT_FOUND, "etcdserver: member not found", EtcdFault::kNotFound},
    Known{grpc::OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", EtcdFault::kCompacted},
    Known{grpc::DATA_LOSS, "etcdserver: corrupt cluster", EtcdFault::kCorrupt},
    Known{grpc::PERMISSION_DENIED, "etcdserver:", EtcdFault::kDenied},
    Known{grpc::UNAUTHENTICATED, "etcdserver:", EtcdFault::kDenied},
    Known{grpc::UNAVAILABLE, "etcdserver: unhealthy cluster", EtcdFault::kNotYet},
    Known{grpc::FAILED_PRECONDITION, "etcdserver: can only promote a learner member which is in sync",
          EtcdFault::kNotYet},
    Known{grpc::FAILED_PRECONDITION, "etcdserver: re-configuration failed due to not enough started members",
          EtcdFault::kNotYet},
    Known{grpc::FAILED_PRECONDITION, "etcdserver:", EtcdFault::kRefused},
};

}  // namespace

EtcdFault etcd_fault(const grpc::Status& status) {
  if (status.ok()) return EtcdFault::kNone;
  for (const Known& known : kKnown) {
    if (status.error_code() == known.code && status.error_message().starts_with(known.begins)) return known.fault;
  }
  return EtcdFault::kUnknown;
}

std::string etcd_message(const grpc::Status& status) {
  if (status.error_code() == grpc::DEADLINE_EXCEEDED) return "no answer in time";
  if (status.error_code() == grpc::CANCELLED) return "given up, because that member stopped answering";
  std::string text = escape_text(status.error_message().substr(0, kMessageBytesMax));
  if (text.empty()) text = "gRPC error " + std::to_string(status.error_code());
  return text;
}

}  // namespace usblease::store
