// etcd used the way people use it for locks: what usblease is measured beside.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/error.h"

namespace usblease::bench {

struct EtcdAccess {
  std::string endpoint;  // "HOST:PORT"
  std::string ca_file, cert_file, key_file;
};

// One client of one etcd member, with a connection of its own. Calls wait for their answer, at most 30 s. Not for
// several threads at once.
class EtcdLocks {
 public:
  explicit EtcdLocks(const EtcdAccess& access);
  ~EtcdLocks();
  EtcdLocks(const EtcdLocks&) = delete;
  EtcdLocks& operator=(const EtcdLocks&) = delete;

  // The four calls of a client that keeps nothing: LeaseGrant, Lock | Unlock, LeaseRevoke.
  Result<void> acquire_with_lease(const std::string& name);
  Result<void> release_with_lease();

  // The two calls of one that keeps its lease: Lock | Unlock.
  Result<void> keep_lease(std::int64_t ttl_s);  // first; nothing renews it
  Result<void> acquire(const std::string& name);
  Result<void> release();

  // One transaction with one guard and one put, and nothing else.
  Result<void> guarded_put(const std::string& key);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace usblease::bench
