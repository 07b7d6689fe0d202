#include "daemon/cluster_parts.h"

#include <algorithm>
#include <utility>

#include "common/main_loop.h"
#include "daemon/store/etcd_store.h"

namespace usblease {
namespace {

constexpr const char* kScheme = "https://";
// Below this a busy host would look dead to its peers now and then.
constexpr std::uint32_t kSilentLeastMs = 1'000;
// Up to this ttl the store, too, has to be fast.
constexpr std::uint32_t kFastTtlMs = 2'000;

std::string without_scheme(const std::string& url) {
  return url.rfind(kScheme, 0) == 0 ? url.substr(std::string(kScheme).size()) : url;
}

}  // namespace

std::vector<std::string> store_endpoints(const cluster::Members& members, const std::string& host_id) {
  std::vector<std::string> endpoints;
  for (const cluster::Member& member : members.hosts) {
    if (member.store_url.empty()) continue;
    const auto at = member.host_id == host_id ? endpoints.begin() : endpoints.end();
    endpoints.insert(at, without_scheme(member.store_url));
  }
  return endpoints;
}

std::string cluster_directory(const Config& config) { return config.state_dir + "/cluster"; }

std::string members_path(const Config& config) { return cluster_directory(config) + "/members"; }

Result<std::unique_ptr<store::Store>> open_cluster_store(const Config& config, const cluster::Members& members) {
  const cluster::Member* self = members.find(config.host_id);
  if (self == nullptr)
    return fail(ErrorCode::kRefused, "host " + config.host_id + " is not in " + members_path(config) +
                                         "; was host_id= changed since it joined?");
  if (!self->candidate) return std::unique_ptr<store::Store>();
  store::EtcdOptions options;
  options.key_prefix = config.store.prefix + members.cluster_id + "/";
  if (config.store.endpoints.empty()) {
    options.endpoints = store_endpoints(members, config.host_id);
    options.ca_file = cluster_directory(config) + "/" + cluster::kAuthoritiesFile;
    options.cert_file = cluster_directory(config) + "/" + cluster::kCertificateFile;
    options.key_file = cluster_directory(config) + "/" + cluster::kKeyFile;
  } else {
    for (const std::string& url : config.store.endpoints) options.endpoints.push_back(without_scheme(url));
    options.ca_file = config.store.ca_file;
    options.cert_file = config.store.cert_file;
    options.key_file = config.store.key_file;
  }
  return store::open_etcd_store(options, post);
}

Result<std::unique_ptr<cluster::TlsTransport>> open_transport(const Config& config, const cluster::Members& members,
                                                              cluster::TransportEvents events) {
  const auto identity = cluster::load_identity(cluster_directory(config));
  if (!identity) return tl::unexpected(identity.error());
  if (identity->host_id != config.host_id || identity->cluster_id != members.cluster_id)
    return fail(ErrorCode::kRefused, "the certificate in " + cluster_directory(config) + " is of host " +
                                         identity->host_id + " in cluster " + identity->cluster_id + ", but this is " +
                                         config.host_id + " in " + members.cluster_id);
  cluster::TlsTransportOptions options;
  options.listen = config.cluster_listen.front() == ':' ? "*" + config.cluster_listen : config.cluster_listen;
  options.silent_ms = std::max(2 * config.renewal_ms, kSilentLeastMs);
  return cluster::TlsTransport::open(*identity, options, std::move(events));
}

cluster::MembershipOptions membership_options(const Config& config, const std::string& boot_id,
                                              const std::string& cluster_id, bool clustered) {
  cluster::MembershipOptions options;
  options.state_dir = config.state_dir;
  options.host_id = config.host_id;
  options.boot_id = boot_id;
  options.cluster_id = cluster_id;
  options.listen = config.cluster_listen;
  options.advertise = config.cluster_advertise;
  options.store_prefix = config.store.prefix;
  options.clustered = clustered;
  if (config.ttl_ms <= kFastTtlMs) {
    options.heartbeat_ms = 50;
    options.election_ms = 300;
  }
  return options;
}

Result<std::unique_ptr<cluster::EtcdMember>> open_store_member(const Config& config, const cluster::Members& members,
                                                               const std::string& boot_id) {
  const cluster::MembershipOptions membership = membership_options(config, boot_id, members.cluster_id, true);
  cluster::EtcdMemberOptions options;
  options.directory = cluster_directory(config) + "/etcd";
  if (!config.store.endpoints.empty() || !cluster::EtcdMember::exists(options.directory))
    return std::unique_ptr<cluster::EtcdMember>();
  const auto addresses = cluster::own_addresses(membership, {});
  const cluster::Member* self = members.find(config.host_id);
  const bool known = self != nullptr && !self->addresses.empty();
  if (!known && !addresses) return tl::unexpected(addresses.error());
  const auto place = cluster::store_place(config.cluster_listen, known ? self->addresses.front() : addresses->front());
  if (!place) return tl::unexpected(place.error());
  options.identity_directory = cluster_directory(config);
  options.boot_id = boot_id;
  options.cluster_id = members.cluster_id;
  options.name = config.host_id;
  options.listen_address = place->listen_address;
  options.advertise_host = place->advertise_host;
  options.client_port = place->client_port;
  options.peer_port = place->peer_port;
  options.heartbeat_ms = membership.heartbeat_ms;
  options.election_ms = membership.election_ms;
  auto member = std::make_unique<cluster::EtcdMember>(
      options, [](cluster::EtcdState /*state*/, const std::string& /*logged there*/) {});
  if (auto started = member->start(); !started) return tl::unexpected(started.error());
  return member;
}

}  // namespace usblease
