// `cluster init`: a cluster of one on SQLite becomes the first host of a cluster on etcd, and nothing of its state is
// lost. Until the members file is written, which is the moment at which it counts, everything can be undone and a crash
// leaves the cluster of one as it was.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/cluster_membership.h"
#include "daemon/cluster/etcd_member.h"
#include "daemon/store/store.h"

namespace usblease::cluster {

class Founding {
 public:
  using Done = std::function<void(Result<api::ClusterInitReply>)>;
  Founding(const MembershipOptions& options, store::Store& from, std::vector<std::string> addresses,
           std::string principal, Done done);

  void start();

 private:
  Result<void> make_identity_files();
  Result<void> start_member();
  void wait_for_member();
  void stop_writers();
  void take_key(const store::ReadResult& all);
  void read_state();
  void copy(const store::ReadResult& all);
  void write_next();
  void check_copy();
  void finish();
  void give_up(const Error& error);
  [[nodiscard]] std::string directory() const { return options_.state_dir + "/cluster"; }

  const MembershipOptions options_;
  store::Store& from_;
  std::vector<std::string> addresses_;
  const std::string principal_;
  Done done_;
  record::Member self_;
  Members members_;
  std::unique_ptr<EtcdMember> member_;
  std::unique_ptr<store::Store> to_;
  std::vector<std::pair<std::string, std::string>> entries_;
  std::size_t written_ = 0;
  bool key_taken_ = false;
  std::uint64_t give_up_ns_ = 0;
  SourceHandle retry_;
};

}  // namespace usblease::cluster
