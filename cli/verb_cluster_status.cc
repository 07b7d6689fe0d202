#include <algorithm>

#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

std::string role_of(const api::HostStatus& host) {
  if (host.member().standing() == record::STANDING_REMOVED) return "removed";
  std::string role = host.coordinator() ? "coordinator" : "";
  const char* store = host.member().store().role() == record::STORE_ROLE_VOTER     ? "store"
                      : host.member().store().role() == record::STORE_ROLE_LEARNER ? "learner"
                                                                                   : "";
  if (*store != '\0') role += (role.empty() ? "" : ", ") + std::string(store);
  return role.empty() ? "plain" : role;
}

std::string condition_of(const api::HostStatus& host) {
  if (host.member().standing() == record::STANDING_REMOVED) return "-";
  if (host.host().boot_id().empty()) return "never seen";
  if (host.member().standing() == record::STANDING_LEAVING) return host.live() ? "leaving" : "leaving, gone";
  if (!host.live()) return "gone";
  if (host.member().rotate() || host.member().certificates_size() > 1) return "rotating";
  return host.host().draining() ? "draining" : "up";
}

std::string gigabytes(std::uint64_t bytes) {
  return std::to_string(bytes / 1'000'000'000) + "." + std::to_string(bytes / 100'000'000 % 10) + " GB";
}

// Who keeps the cluster from what others understand already; empty: nobody.
std::string outdated(const api::ClusterStatusReply& reply) {
  std::uint32_t most_format = 0;
  std::uint32_t most_peer = 0;
  std::string out;
  const auto counts = [](const api::HostStatus& host) {
    return host.member().standing() != record::STANDING_REMOVED && !host.host().boot_id().empty();
  };
  for (const auto& host : reply.hosts()) {
    if (!counts(host)) continue;
    most_format = std::max(most_format, host.host().record_format());
    most_peer = std::max(most_peer, host.host().peer_version());
  }
  for (const auto& host : reply.hosts()) {
    if (counts(host) && (host.host().record_format() < most_format || host.host().peer_version() < most_peer))
      out += (out.empty() ? "; still older: " : ", ") + escape_text(host.host().id());
  }
  return out;
}

std::string hosts_table(const api::ClusterStatusReply& reply, bool with_header) {
  Table table({"Host", "State", "Role", "Devices", "Leases", "Version", "Address"});
  for (const auto& host : reply.hosts()) {
    table.add({host.host().id(), condition_of(host), role_of(host), std::to_string(host.homed_devices()),
               std::to_string(host.leases()), host.host().version(),
               host.member().addresses().empty() ? "" : host.member().addresses(0)});
  }
  return table.format(with_header);
}

std::string store_table(const api::ClusterStatusReply& reply, bool with_header) {
  if (reply.store_members().empty()) return "";
  Table table({"Store member", "State", "Role", "Version", "Revision", "Size", "Trouble"});
  for (const auto& member : reply.store_members()) {
    table.add({member.host_id(), member.reachable() ? "up" : "not reachable",
               member.leader()    ? "leader"
               : member.learner() ? "learner"
                                  : "follower",
               member.version(), std::to_string(member.revision()), std::to_string(member.size_bytes() / 1000) + " kB",
               member.trouble()});
  }
  return "\n" + table.format(with_header);
}

}  // namespace

Result<void> verb_cluster_status(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_status();
  const auto reply = ask(context, request, api::ServerFrame::kClusterStatus);
  if (!reply) return tl::unexpected(reply.error());
  const auto& cluster = reply->cluster_status();
  if (invocation.globals.json) return print_json(cluster);
  Facts facts;
  facts.add("Cluster", cluster.status().cluster_id());
  facts.add("Coordinator", cluster.status().coordinator());
  facts.add("Term", std::to_string(cluster.status().term()));
  facts.add("Epoch", std::to_string(cluster.status().epoch()));
  facts.add("Store", cluster.status().store());
  facts.add("Store's health", cluster.status().store_health());
  facts.add("Store's revision", std::to_string(cluster.status().store_revision()));
  facts.add_if("Store is behind", cluster.status().behind());
  facts.add("In use", "record format " + std::to_string(cluster.record_format()) + ", peer protocol " +
                          std::to_string(cluster.peer_version()) + outdated(cluster));
  facts.add("Disk", gigabytes(cluster.disk_free_bytes()) + " of " + gigabytes(cluster.disk_size_bytes()) + " free");
  facts.add("Time of day",
            cluster.clock_synchronized() ? "synchronized" : "not synchronized: ends of leases may be off");
  print(facts.format() + "\n" + hosts_table(cluster, !invocation.globals.quiet) +
        store_table(cluster, !invocation.globals.quiet));
  return {};
}

}  // namespace usblease::cli
