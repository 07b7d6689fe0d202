// `cluster join`: this host, a cluster of one, becomes a host of another cluster. Its own state is archived; what it
// offers comes with its configuration. The members file is written last: until then it is what it was.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/cluster_membership.h"
#include "daemon/cluster/etcd_member.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/join_client.h"
#include "join.pb.h"

namespace usblease::cluster {

class Joining {
 public:
  using Done = std::function<void(Result<api::ClusterJoinReply>)>;
  Joining(const MembershipOptions& options, JoinToken token, std::vector<std::string> addresses, Done done);

  void start();

 private:
  void ask();
  void answered(const Result<JoinAnswer>& answer);
  void ask_again(std::vector<std::string> addresses);
  Result<void> take(const join::JoinReply& reply, const std::string& authority);
  Result<void> start_member(const join::JoinReply& reply);
  [[nodiscard]] EtcdMemberOptions member_options() const;
  void give_up(const Error& error);
  [[nodiscard]] std::string directory() const { return options_.state_dir + "/cluster"; }

  MembershipOptions options_;
  JoinToken token_;
  std::vector<std::string> addresses_;
  Done done_;
  HostRequest request_;
  std::unique_ptr<JoinClient> client_;
  std::unique_ptr<EtcdMember> member_;
  std::uint64_t give_up_ns_ = 0;
  SourceHandle retry_;
};

}  // namespace usblease::cluster
