// What an error of etcd means for the call that got it.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>

namespace usblease::store {

enum class EtcdFault : std::uint8_t {
  kNone,
  kNotBegun,   // it did nothing and never will, here; another endpoint may do it
  kRefused,    // it did nothing and never will
  kNoSpace,    // the same, for lack of space
  kTooLarge,   // the same, for its size
  kLeaseGone,  // the same: the lease that it names has run out
  kCompacted,  // the revision that it names is history that was dropped
  kCorrupt,    // the members' databases differ; nothing was done
  kDenied,     // credentials
  kNotYet,     // it did nothing; again later
  kNotFound,   // no such member
  kUnknown,    // anything else: it may have happened
};

EtcdFault etcd_fault(const grpc::Status& status);

// For people: bounded and printable.
std::string etcd_message(const grpc::Status& status);

}  // namespace usblease::store
