// Where the store's own leader is: on the coordinator's host. A transaction then waits for one host less, and a host
// that is cut off, or dies, takes the store's leader with it only when it takes the coordinator, too: one stall, not
// two.
#include "common/log.h"
#include "daemon/cluster/cluster_membership.h"

namespace usblease::cluster {
namespace {

// A member that lags behind would stall all others while it catches up.
constexpr std::uint64_t kLagMax = 1'000;

bool may_lead(const store::EtcdStatus& status) {
  return !status.learner && !status.corrupt && status.leader_id != 0 && status.leader_id != status.member_id &&
         status.raft_index - status.applied_index <= kLagMax;
}

}  // namespace

// At the coordinator. What is in flight at that moment may have to be sent again, so not in the moment of an election.
void ClusterMembership::keep_store_leader() {
  const Member* self = members_.find(options_.host_id);
  if (self == nullptr || self->store_url.empty() || moving_leader_) return;
  const auto client = etcd();
  if (!client) return;
  moving_leader_ = true;
  (*client)->status(without_scheme(self->store_url),
                    [this, alive = std::weak_ptr(alive_)](const Result<store::EtcdStatus>& status) {
                      if (alive.expired()) return;
                      if (status && may_lead(*status)) return take_store_leader(status->leader_id, status->member_id);
                      moving_leader_ = false;
                    });
}

void ClusterMembership::take_store_leader(std::uint64_t from_member_id, std::uint64_t to_member_id) {
  const auto ended = [this, alive = std::weak_ptr(alive_)](const Result<void>& done) {
    if (alive.expired()) return;
    moving_leader_ = false;
    if (done) log::info("the store's leader is on this host now");
    if (!done) log::debug("the store's leader stays where it is", {{"ERROR", done.error().message}});
  };
  const auto client = etcd();
  if (!client) return ended(tl::unexpected(client.error()));
  (*client)->list([this, alive = std::weak_ptr(alive_), from_member_id, to_member_id,
                   ended](const Result<store::EtcdMembers>& members) {
    if (alive.expired()) return;
    if (!members) return ended(tl::unexpected(members.error()));
    const auto now = etcd();
    for (const store::EtcdMember& member : members->members) {
      if (member.id == from_member_id && !member.client_urls.empty() && now)
        return (*now)->move_leader(without_scheme(member.client_urls.front()), to_member_id, ended);
    }
    ended(fail(ErrorCode::kNotFound, "its leader is not among its members"));
  });
}

}  // namespace usblease::cluster
