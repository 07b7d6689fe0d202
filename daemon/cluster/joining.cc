#include "daemon/cluster/joining.h"

#include <unistd.h>

#include <utility>

#include "common/boottime.h"
#include "common/log.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kRetryNs = 500 * kNsPerMs;
constexpr std::uint64_t kWithinNs = 25'000 * kNsPerMs;  // below the command line's --timeout
constexpr std::uint32_t kAskMs = 10'000;

}  // namespace

Joining::Joining(const MembershipOptions& options, JoinToken token, std::vector<std::string> addresses, Done done)
    : options_(options), token_(std::move(token)), addresses_(std::move(addresses)), done_(std::move(done)) {
  options_.cluster_id = token_.cluster_id;
}

EtcdMemberOptions Joining::member_options() const {
  EtcdMemberOptions options;
  options.directory = directory() + "/etcd";
  options.identity_directory = directory();
  options.boot_id = options_.boot_id;
  options.cluster_id = options_.cluster_id;
  options.name = options_.host_id;
  options.heartbeat_ms = options_.heartbeat_ms;
  options.election_ms = options_.election_ms;
  if (const auto place = store_place(options_.listen, addresses_.front())) {
    options.listen_address = place->listen_address;
    options.advertise_host = place->advertise_host;
    options.client_port = place->client_port;
    options.peer_port = place->peer_port;
  }
  return options;
}

void Joining::start() {
  give_up_ns_ = boottime_now_ns() + kWithinNs;
  if (const auto place = store_place(options_.listen, addresses_.front()); !place) return give_up(place.error());
  auto request = make_host_request(options_.host_id);
  if (!request) return give_up(request.error());
  request_ = std::move(*request);
  ask();
}

void Joining::ask() {
  join::JoinRequest request;
  request.set_secret(token_.secret);
  request.set_host_id(options_.host_id);
  request.set_certificate_request(request_.request);
  for (const std::string& address : addresses_) request.add_addresses(address);
  const EtcdMemberOptions options = member_options();
  if (access(options.etcd_path.c_str(), X_OK) == 0) {
    const EtcdMember member(options, {});
    request.set_store_client_url(member.client_url());
    request.set_store_peer_url(member.peer_url());
  }
  client_ = std::make_unique<JoinClient>(token_, request.SerializeAsString(), kAskMs,
                                         [this](const Result<JoinAnswer>& answer) { answered(answer); });
}

void Joining::ask_again(std::vector<std::string> addresses) {
  if (!addresses.empty()) token_.addresses = std::move(addresses);
  retry_ = run_after(kRetryNs, [this] { ask(); });
}

void Joining::answered(const Result<JoinAnswer>& answer) {
  const bool late = boottime_now_ns() > give_up_ns_;
  if (!answer) {
    if (answer.error().code != ErrorCode::kUnavailable || late) return give_up(answer.error());
    return ask_again({});
  }
  join::JoinReply reply;
  if (!reply.ParseFromString(answer->payload))
    return give_up(
        {ErrorCode::kUnavailable, "the cluster's answer does not parse; it runs another version of usblease"});
  const command::Status& status = reply.status();
  if (status.code() == command::CODE_UNAVAILABLE && !late) return ask_again({reply.ask().begin(), reply.ask().end()});
  if (status.code() != command::CODE_OK)
    return give_up(
        {status.code() == command::CODE_UNAVAILABLE ? ErrorCode::kUnavailable : ErrorCode::kRefused, status.message()});
  if (auto taken = take(reply, answer->authority); !taken) give_up(taken.error());
}

Result<void> Joining::take(const join::JoinReply& reply, const std::string& authority) {
  // Trusted is the CA whose fingerprint the token carries, and others only beside it (during a rotation).
  const auto authorities = add_authority(reply.authorities(), authority);
  if (!authorities) return tl::unexpected(authorities.error());
  const auto identity = make_identity(*authorities, reply.certificate(), request_.key);
  if (!identity) return tl::unexpected(identity.error());
  if (identity->host_id != options_.host_id || identity->cluster_id != options_.cluster_id)
    return fail(ErrorCode::kRefused, "the cluster certified another host than this one; nothing was changed");
  const auto members = parse_members(reply.members(), "the members that the cluster sent");
  if (!members) return tl::unexpected(members.error());
  if (auto saved = save_identity(directory(), *identity); !saved) return saved;
  if (!reply.revocations().empty()) {
    if (const auto list = revoked_in(reply.revocations()); !list) return tl::unexpected(list.error());
    if (auto saved = write_durably(directory(), kRevocationsFile, reply.revocations(), 0644); !saved) return saved;
  }
  if (reply.store_peers_size() > 0) {
    if (auto started = start_member(reply); !started) return started;
  }
  if (auto saved = save_members(directory() + "/members", *members); !saved) return saved;
  api::ClusterJoinReply joined;
  joined.set_cluster_id(options_.cluster_id);
  joined.set_host_id(options_.host_id);
  joined.set_store_member(reply.store_peers_size() > 0);
  // Tokens and floors of the old cluster mean nothing in the new one.
  if (const auto archive = archive_own_store(options_.state_dir, {"home"})) {
    joined.set_archived(*archive);
  } else {
    log::warning("the old store stays where it is", {{"ERROR", archive.error().message}});
  }
  done_(joined);
  return {};
}

Result<void> Joining::start_member(const join::JoinReply& reply) {
  EtcdFirstStart first;
  first.existing = true;
  for (const join::StorePeer& peer : reply.store_peers()) first.members.push_back({peer.name(), peer.peer_url()});
  const EtcdMemberOptions options = member_options();
  if (auto made = EtcdMember::create(options, first); !made) return made;
  member_ = std::make_unique<EtcdMember>(options, [](EtcdState /*state*/, const std::string& /*logged there*/) {});
  return member_->start();
}

void Joining::give_up(const Error& error) {
  const auto end = [done = done_, error, path = directory()] {
    if (auto removed = EtcdMember::destroy(path); !removed)
      log::warning("what was to become a member is not removed", {{"ERROR", removed.error().message}});
    done(tl::unexpected(error));
  };
  if (!member_) return post(end);
  member_->stop(end);
}

}  // namespace usblease::cluster
