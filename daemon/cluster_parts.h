// What a member of a cluster needs besides the parts of every daemon: the store on etcd and the transport, as the
// configuration, the members file and STATE_DIR/cluster say.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/error.h"
#include "daemon/cluster/cluster_membership.h"
#include "daemon/cluster/etcd_member.h"
#include "daemon/cluster/members.h"
#include "daemon/cluster/tls_transport.h"
#include "daemon/store/store.h"

namespace usblease {

std::string cluster_directory(const Config& config);
std::string members_path(const Config& config);

// "HOST:PORT" of all store members; this host's own first, because what it knows needs no other host.
std::vector<std::string> store_endpoints(const cluster::Members& members, const std::string& host_id);

// nullptr: this host is a plain one, which asks the coordinator for everything. kRefused: this host is not among the
// members.
Result<std::unique_ptr<store::Store>> open_cluster_store(const Config& config, const cluster::Members& members);

// kRefused: the certificate is another host's or another cluster's; otherwise as TlsTransport::open.
Result<std::unique_ptr<cluster::TlsTransport>> open_transport(const Config& config, const cluster::Members& members,
                                                              cluster::TransportEvents events);

// nullptr: this host has no store member. kRefused, kNotFound: it has one that cannot be started, and why.
Result<std::unique_ptr<cluster::EtcdMember>> open_store_member(const Config& config, const cluster::Members& members,
                                                               const std::string& boot_id);

cluster::MembershipOptions membership_options(const Config& config, const std::string& boot_id,
                                              const std::string& cluster_id, bool clustered);

}  // namespace usblease
