// What changes who belongs to the cluster, beyond the record: certificates, store members, files of this host. One
// implementation; the interface keeps the answering of requests free of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "api.pb.h"
#include "common/error.h"

namespace usblease::cluster {

// All calls are made on the main loop's thread; `done` runs on it, once, never inside the call.
class Membership {
 public:
  template <typename T>
  using Done = std::function<void(Result<T>)>;

  Membership() = default;
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;
  virtual ~Membership() = default;

  // Makes a cluster of several out of this cluster of one: its CA and certificate, its first store member, and the
  // state moved into it. After `done` the daemon starts anew, by itself.
  virtual void init(std::vector<std::string> addresses, std::string principal, Done<api::ClusterInitReply> done) = 0;
  // At the coordinator: a token with which `host_id` may join within valid_s.
  virtual void add(std::string host_id, std::uint64_t valid_s, std::string principal,
                   Done<api::ClusterAddReply> done) = 0;
  // On a host that is in no cluster: joins with the token that `add` made. After `done` the daemon starts anew.
  virtual void join(std::string token, Done<api::ClusterJoinReply> done) = 0;
  // At the coordinator: takes its store member away, then the host itself.
  virtual void remove(std::string host_id, std::string principal, Done<api::ClusterRemoveReply> done) = 0;
  // At the coordinator: each host gets a new certificate, one after the other.
  virtual void rotate(std::string principal, Done<api::ClusterRotateReply> done) = 0;
  // At the coordinator: how each store member is.
  virtual void store_status(Done<std::vector<api::StoreMemberStatus>> done) = 0;
};

}  // namespace usblease::cluster
