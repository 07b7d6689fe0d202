// The store keeps its members by itself: a plain host takes the place of one that is lost. At the coordinator it is
// decided; the hosts see in the record what they are to be, and become it.
#include <unistd.h>

#include <algorithm>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/cluster/cluster_membership.h"
#include "daemon/cluster/etcd_member.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

// How long a store member may be missing before another host takes its place: longer than a reboot, because a member
// that comes back has almost all of the data, and a new one has none.
constexpr std::uint64_t kReplaceNs = 600ULL * 1'000'000'000;

bool has_store_member(const record::Member& member) { return member.store().role() != record::STORE_ROLE_NONE; }

bool is_live(const lease::State& state, const std::string& host_id) {
  const auto host = state.hosts.find(host_id);
  return host != state.hosts.end() && !host->second.gone() && !host->second.draining();
}

}  // namespace

void ClusterMembership::keep_store_complete() {
  const lease::State* known = state();
  if (known == nullptr || changing_store_) return;
  const std::uint64_t now_ns = boottime_now_ns();
  const record::Member* recruit_from = nullptr;
  std::size_t running = 0;
  for (const auto& [id, member] : known->members) {
    if (member.standing() != record::STANDING_JOINED) continue;
    const bool live = is_live(*known, id);
    if (has_store_member(member)) {
      ++running;
      // A learner that lives and does not catch up is missing, too.
      if (live && member.store().role() == record::STORE_ROLE_VOTER) {
        missing_since_.erase(id);
      } else {
        missing_since_.emplace(id, now_ns);
      }
    } else if (live && !unfit_.contains(id) && !member.addresses().empty() && recruit_from == nullptr) {
      recruit_from = &member;
    }
  }
  for (const auto& [id, since_ns] : missing_since_) {
    const auto member = known->members.find(id);
    if (member == known->members.end() || !has_store_member(member->second) || now_ns - since_ns < kReplaceNs) continue;
    const bool learner = member->second.store().role() == record::STORE_ROLE_LEARNER;
    if (learner) unfit_.insert(id);
    // A voter stays until there is somebody in its place: it may still come back.
    if (learner || recruit_from != nullptr)
      return dismiss(id, member->second, learner ? "it does not catch up" : "gone");
  }
  if (recruit_from != nullptr && !promoting_ && running < lease::kStoreMembersMax)
    recruit(recruit_from->host_id(), *recruit_from);
}

void ClusterMembership::recruit(const std::string& host_id, const record::Member& member) {
  const std::string& address = member.addresses(0);
  const auto place = store_place(address, address);
  const auto client = etcd();
  if (!place || !client) return;
  EtcdMemberOptions options;
  options.advertise_host = place->advertise_host;
  options.client_port = place->client_port;
  options.peer_port = place->peer_port;
  const EtcdMember urls(options, {});
  record::StoreMember store;
  store.set_role(record::STORE_ROLE_LEARNER);
  store.set_client_url(urls.client_url());
  store.set_peer_url(urls.peer_url());
  changing_store_ = true;
  (*client)->add_learner({store.peer_url()}, [this, alive = std::weak_ptr(alive_), host_id,
                                              store](const Result<store::EtcdMembers>& members) mutable {
    if (alive.expired()) return;
    changing_store_ = false;
    if (!members) return log::debug("no store member is added now", {{"ERROR", members.error().message}});
    for (const store::EtcdMember& each : members->members) {
      if (std::find(each.peer_urls.begin(), each.peer_urls.end(), store.peer_url()) != each.peer_urls.end())
        store.set_member_id(each.id);
    }
    log::info("a host becomes a store member", {{"HOST", host_id}});
    update_store(host_id, store, [](const command::Reply& /*the next poll sees it*/) {});
  });
}

void ClusterMembership::dismiss(const std::string& host_id, const record::Member& member, const std::string& why) {
  const auto client = etcd();
  if (!client) return;
  log::warning("a store member is given up", {{"HOST", host_id}, {"ERROR", why}});
  changing_store_ = true;
  const std::string peer_url = member.store().peer_url();
  const auto ended = [this, alive = std::weak_ptr(alive_), host_id](const Result<void>& done) {
    if (alive.expired()) return;
    changing_store_ = false;
    if (!done) return log::warning("it stays for now", {{"HOST", host_id}, {"ERROR", done.error().message}});
    missing_since_.erase(host_id);
    update_store(host_id, record::StoreMember(), [](const command::Reply& /*the next poll sees it*/) {});
  };
  (*client)->list([client = *client, peer_url, ended](const Result<store::EtcdMembers>& members) {
    if (!members) return ended(tl::unexpected(members.error()));
    for (const store::EtcdMember& each : members->members) {
      if (std::find(each.peer_urls.begin(), each.peer_urls.end(), peer_url) == each.peer_urls.end()) continue;
      return client->remove(each.id, [ended](const Result<store::EtcdMembers>& left) {
        if (!left && left.error().code != ErrorCode::kNotFound) return ended(tl::unexpected(left.error()));
        ended({});
      });
    }
    ended({});
  });
}

// True: this host is about to begin anew, as what the record says.
bool ClusterMembership::obey_role(const record::Member& self, const std::vector<record::Member>& members) {
  const std::string path = directory() + "/etcd";
  const bool has = EtcdMember::exists(path);
  if (self.store().role() == record::STORE_ROLE_NONE && has) {
    log::info("the store does not need this host's member any more");
    hooks_.retire_store_member([this] { hooks_.restart(); });
    return true;
  }
  if (self.store().role() != record::STORE_ROLE_LEARNER || has) return false;
  EtcdMemberOptions options;
  if (access(options.etcd_path.c_str(), X_OK) != 0) {
    if (unfit_.insert(options_.host_id).second)
      log::warning("this host is to become a store member, but has no " + options.etcd_path + "; install etcd-server");
    return false;
  }
  EtcdFirstStart first;
  first.existing = true;
  for (const record::Member& member : members) {
    if (has_store_member(member)) first.members.push_back({member.host_id(), member.store().peer_url()});
  }
  options.directory = path;
  options.cluster_id = options_.cluster_id;
  options.name = options_.host_id;
  if (auto made = EtcdMember::create(options, first); !made) {
    log::warning("this host cannot become a store member", {{"ERROR", made.error().message}});
    return false;
  }
  log::info("this host becomes a store member");
  hooks_.restart();
  return true;
}

}  // namespace usblease::cluster
