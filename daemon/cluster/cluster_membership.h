// Membership as usbleased does it. At the coordinator: tokens, joins, promotions, removals. On every host: it follows
// who the members are. What makes a cluster, or lets this host into one, is in founding.h and joining.h.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/members.h"
#include "daemon/cluster/membership.h"
#include "daemon/cluster/node.h"
#include "daemon/store/etcd_client.h"
#include "join.pb.h"

namespace usblease::cluster {

struct MembershipOptions {
  std::string state_dir;
  std::string host_id;
  std::string boot_id;
  std::string cluster_id;
  std::string listen;                  // of this daemon, "ADDRESS:PORT" or ":PORT"; the store's ports are the next two
  std::vector<std::string> advertise;  // "HOST:PORT"; empty: found out
  std::uint32_t heartbeat_ms = 100;    // of the store member
  std::uint32_t election_ms = 1'000;
  std::string store_prefix = "/usblease/";  // [store] prefix=
  bool clustered = false;
};

struct MembershipHooks {
  std::function<void()> restart;  // the daemon begins anew, soon, with what lies in STATE_DIR then; may be called again
  std::function<void(const Members&)> members;     // from now on these are the members
  std::function<void(const std::string&)> forbid;  // this host was removed
  std::function<void(const std::string&)> permit;  // this one is a host of the cluster
  std::function<void(const Identity&)> identity;   // this host has another certificate from now on; it is on disk
  // The store does not need this host's member any more: ends it, deletes its files, then calls `done`.
  std::function<void(std::function<void()> done)> retire_store_member;
};

class Founding;
class Joining;

class ClusterMembership : public Membership {
 public:
  // `store`: nullptr on a plain host. All references have to outlive it.
  ClusterMembership(MembershipOptions options, store::Store* store, Node& node, MembershipHooks hooks);
  ~ClusterMembership() override;

  void init(std::vector<std::string> addresses, std::string principal, Done<api::ClusterInitReply> done) override;
  void add(std::string host_id, std::uint64_t valid_s, std::string principal, Done<api::ClusterAddReply> done) override;
  void join(std::string token, Done<api::ClusterJoinReply> done) override;
  void remove(std::string host_id, std::string principal, Done<api::ClusterRemoveReply> done) override;
  void rotate(std::string principal, Done<api::ClusterRotateReply> done) override;
  void store_status(Done<std::vector<api::StoreMemberStatus>> done) override;

  // TransportEvents::join: somebody outside asks. Answers with a join::JoinReply.
  void answer_join(const std::string& payload, std::function<void(std::string)> answer);

  // PeerServiceHooks::other: a host of the cluster asks. False: this is not for membership.
  bool answer_peer(const std::string& host_id, const peer::PeerRequest& request,
                   std::function<void(peer::PeerAnswer)> answer);

  // Begins to follow the members, now and then and after each change here.
  void follow();

 private:
  struct Join;
  void certify(const std::shared_ptr<Join>& join);
  void add_store_member(const std::shared_ptr<Join>& join);
  void finish_join(const std::shared_ptr<Join>& join);
  void take_members(const std::vector<record::Member>& members);
  void promote_learners();
  // rotation.cc
  void sign(const std::string& host_id, const std::string& certificate_request,
            const std::vector<std::string>& addresses, std::function<void(Result<std::string>)> done);
  [[nodiscard]] std::string not_now(const std::string& host_id) const;
  void rotate_if_due(const record::Member& self);
  void take_certificate(const HostRequest& request, const peer::Certified& certified);
  void note_in_use(const record::Certificate& certificate);
  void keep_revocations();
  void publish_revocations(const std::set<std::string>& serials, const store::ReadResult& all);
  void take_revocations(const std::vector<record::Member>& members);
  // store_recruits.cc
  void keep_store_complete();
  void recruit(const std::string& host_id, const record::Member& member);
  void dismiss(const std::string& host_id, const record::Member& member, const std::string& why);
  bool obey_role(const record::Member& self, const std::vector<record::Member>& members);
  // store_leader.cc
  void keep_store_leader();
  void take_store_leader(std::uint64_t from_member_id, std::uint64_t to_member_id);
  void remove_from_record(const std::string& host_id, const std::string& principal,
                          const Done<api::ClusterRemoveReply>& done);
  void update_store(const std::string& host_id, const record::StoreMember& store,
                    std::function<void(const command::Reply&)> done);
  Result<store::EtcdClient*> etcd();
  [[nodiscard]] const lease::State* state() const;
  [[nodiscard]] std::string directory() const { return options_.state_dir + "/cluster"; }

  MembershipOptions options_;
  store::Store* store_;
  Node& node_;
  MembershipHooks hooks_;
  Members members_;
  bool candidate_ = false;
  std::unique_ptr<store::EtcdClient> etcd_;
  std::unique_ptr<Founding> founding_;
  std::unique_ptr<Joining> joining_;
  bool promoting_ = false;
  bool coordinated_ = false;  // at the last poll
  bool moving_leader_ = false;
  bool changing_store_ = false;                         // one change of the store's members at a time
  std::map<std::string, std::uint64_t> missing_since_;  // hosts with a store member that do not answer, or do not copy
  std::set<std::string> unfit_;                         // hosts that were asked to run a store member and did not
  bool rotating_ = false;                               // this host waits for a certificate
  bool settling_ = false;                               // this host's certificate is being replaced
  bool publishing_ = false;
  std::optional<std::set<std::string>> published_;  // the revocations that the store has, as far as is known
  bool removed_ = false;                            // this host itself
  SourceHandle poll_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// The members file as the record says it. A host may stand once its store member votes.
Members members_of(const std::string& cluster_id, const std::vector<record::Member>& members);

// Where the store member of this host is and listens, by [cluster] listen= and the first address that others know.
struct StorePlace {
  std::string listen_address;
  std::string advertise_host;
  std::uint16_t client_port = 0;
  std::uint16_t peer_port = 0;
};
// kBadInput: an address is not HOST:PORT.
Result<StorePlace> store_place(const std::string& listen, const std::string& advertised);

// "HOST:PORT" of this host for others: what was given, else configured, else the first address of an interface.
// kUnavailable: there is none; says how to give one.
Result<std::vector<std::string>> own_addresses(const MembershipOptions& options, const std::vector<std::string>& given);

// "https://HOST:PORT" as "HOST:PORT".
std::string without_scheme(const std::string& url);

// The hosts in "HOST:PORT", for a certificate.
std::vector<std::string> hosts_in(const std::vector<std::string>& addresses);

// Moves this host's files of a cluster of one (the SQLite store, and `also`) into STATE_DIR/archive-UNIX_TIME, which is
// returned. They are whole there: SQLite's log goes with its database.
Result<std::string> archive_own_store(const std::string& state_dir, const std::vector<std::string>& also);

}  // namespace usblease::cluster
