// Administration of etcd: who is a member, how they are, snapshots. The records in it are etcd_store.h's business.
//
// All calls are made on the main loop's thread; every `done` runs through the executor, once, never inside the call.
// Each call ends within `call_timeout_ms` (snapshot, defragment: their own bound below). Calls that need a quorum go to
// any endpoint that has one, and on to the next one only while it is certain that they did not happen.
//
// Errors of every call:
//   kUnavailable  no endpoint answers, no quorum, not yet (a learner that is not in sync, an unhealthy cluster): again
//   later kTimedOut     it is not known whether it happened: list the members before anything follows from it kNotFound
//   no such member kRefused      etcd refuses it: it is so already (member exists, is no learner), or it would lose the
//   quorum kDenied       etcd asks for other credentials
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "daemon/store/store.h"

namespace usblease::store {

// How etcd is reached; for the client and for the store.
struct EtcdOptions {
  std::vector<std::string> endpoints;  // "HOST:PORT", "[ADDRESS]:PORT"; 1…16; the nearest first: it is used while fit
  std::string ca_file;                 // PEM, all three or none. Read once, and by reload_etcd_credentials
  std::string cert_file;
  std::string key_file;
  std::string key_prefix;                  // of the store, "/usblease/CLUSTER_ID/"; not sent to callers of the store
  std::uint32_t call_timeout_ms = 5'000;   // at least 100
  std::uint32_t owner_ttl_ms = 2'000;      // of the owned keys; rounded up to seconds; etcd may take a longer one
  std::uint32_t upkeep_every_ms = 60'000;  // set_etcd_upkeep (etcd_store.h)
  std::uint32_t history_ms = 600'000;
  std::uint64_t defragment_bytes = 64UL * 1024 * 1024;  // unused ones, and more than are used
  std::uint64_t etcd_cluster_id = 0;  // an endpoint of another etcd cluster is not used; 0: the first that answers
};

inline constexpr std::size_t kEtcdEndpointsMax = 16;

// Why usblease does not use an etcd of this version ("3.4.23"), for people; empty: it does. Learners, which members
// join as, came with 3.4.
std::string etcd_version_problem(const std::string& version);

struct EtcdMember {
  std::uint64_t id = 0;
  std::string name;                    // empty: added, but never started
  std::vector<std::string> peer_urls;  // "https://HOST:PORT"
  std::vector<std::string> client_urls;
  bool learner = false;
};

struct EtcdMembers {
  std::uint64_t etcd_cluster_id = 0;
  std::vector<EtcdMember> members;
};

struct EtcdStatus {
  std::uint64_t etcd_cluster_id = 0;
  std::uint64_t member_id = 0;
  std::uint64_t leader_id = 0;  // 0: it knows none
  std::uint64_t revision = 0;
  std::uint64_t raft_term = 0;
  std::uint64_t raft_index = 0;
  std::uint64_t applied_index = 0;
  std::uint64_t db_bytes = 0;
  std::uint64_t db_bytes_in_use = 0;
  std::string version;  // "3.4.23"
  bool learner = false;
  bool no_space = false;  // alarms, of the whole cluster
  bool corrupt = false;
};

struct EtcdSnapshot {
  std::uint64_t bytes = 0;  // of the file, its SHA-256 at the end included
};

class EtcdClient {
 public:
  // kBadInput: an endpoint or a bound is wrong; kUnavailable: a PEM file cannot be read. Waits for nobody.
  static Result<std::unique_ptr<EtcdClient>> open(const EtcdOptions& options, Executor executor);

  EtcdClient() = default;
  EtcdClient(const EtcdClient&) = delete;
  EtcdClient& operator=(const EtcdClient&) = delete;
  // Ends outstanding calls at once, with kTimedOut; their callbacks are posted.
  virtual ~EtcdClient() = default;

  // Of another set of endpoints from now on; those that stay keep their connections. kBadInput: nothing was changed.
  virtual Result<void> set_endpoints(const std::vector<std::string>& endpoints) = 0;

  // Linearizable.
  virtual void list(std::function<void(Result<EtcdMembers>)> done) = 0;

  // Adds a member that does not vote yet. The answer holds all members, the new one included (found by its peer URLs);
  // then it is started with --initial-cluster-state=existing.
  virtual void add_learner(std::vector<std::string> peer_urls, std::function<void(Result<EtcdMembers>)> done) = 0;

  // Makes it vote. kUnavailable while it is not in sync with the leader: again later.
  virtual void promote(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) = 0;

  virtual void remove(std::uint64_t member_id, std::function<void(Result<EtcdMembers>)> done) = 0;

  // Other peer URLs of a member that moved.
  virtual void update(std::uint64_t member_id, std::vector<std::string> peer_urls,
                      std::function<void(Result<EtcdMembers>)> done) = 0;

  // Of one endpoint, whether or not it is among the client's; from what that member itself knows, without a quorum.
  virtual void status(std::string endpoint, std::function<void(Result<EtcdStatus>)> done) = 0;

  // `endpoint` must be the leader's, else kRefused.
  virtual void move_leader(std::string endpoint, std::uint64_t to_member_id,
                           std::function<void(Result<void>)> done) = 0;

  // Gives what deleted records occupy back to the disk. That member answers nobody meanwhile: one after the other. Ends
  // within 60 s.
  virtual void defragment(std::string endpoint, std::function<void(Result<void>)> done) = 0;

  // Ends the alarm "no space" of all members, after room was made; etcd raises it again when there is none.
  virtual void end_space_alarm(std::function<void(Result<void>)> done) = 0;

  // Writes a snapshot of the whole database of the member at `endpoint` to `path` (mode 0600; must not exist), synced
  // and checked against the SHA-256 that ends it; `etcdctl snapshot restore` takes it. On an error the file is removed.
  // Ends within 120 s. kInternal: the file cannot be written.
  virtual void snapshot(std::string endpoint, std::string path, std::function<void(Result<EtcdSnapshot>)> done) = 0;
};

}  // namespace usblease::store
