#include "daemon/lease/versions.h"

#include <algorithm>

#include "daemon/lease/keys.h"
#include "daemon/lease/step.h"

namespace usblease::lease {
namespace {

// Hosts that do not say are of the first version.
std::uint32_t said(std::uint32_t version) { return std::max(version, 1U); }

}  // namespace

const Versions& own_versions() {
  static const Versions kOwn{kRecordFormat, kPeerVersion, {}};
  return kOwn;
}

Versions common_versions(const State& state, const Versions& own) {
  Versions common{own.record_format, own.peer_version, {}};
  const auto also = [&](const record::Host& host) {
    common.record_format = std::min(common.record_format, said(host.record_format()));
    common.peer_version = std::min(common.peer_version, said(host.peer_version()));
  };
  if (state.members.empty()) {
    for (const auto& [id, host] : state.hosts) also(host);
  }
  for (const auto& [id, member] : state.members) {
    if (member.standing() == record::STANDING_REMOVED) continue;
    const auto host = state.hosts.find(id);
    also(host == state.hosts.end() ? record::Host() : host->second);  // it has not said yet
  }
  return common;
}

// True: the cluster has gone on, and this host cannot follow.
bool Step::refuse_outdated(const record::Host& host) {
  const std::uint32_t format = said(state_.meta.format());
  const std::uint32_t peer_version = said(state_.meta.peer_version());
  if (said(host.record_format()) >= format && said(host.peer_version()) >= peer_version) return false;
  refuse(command::CODE_REFUSED, "host " + host.id() + " runs usblease " + host.version() +
                                    ", which understands format " + std::to_string(said(host.record_format())) +
                                    " of the records and version " + std::to_string(said(host.peer_version())) +
                                    " of the messages between hosts; the cluster uses " + std::to_string(format) +
                                    " and " + std::to_string(peer_version) + " by now: upgrade usblease there");
  return true;
}

void Step::raise_versions() {
  const Versions common = common_versions(state_, versions_);
  const std::uint32_t format = said(state_.meta.format());
  if (common.record_format <= format && common.peer_version <= said(state_.meta.peer_version())) return;
  for (std::uint32_t from = format; from < common.record_format; ++from) {
    if (const auto migration = versions_.migrations.find(from); migration != versions_.migrations.end())
      migration->second(state_, dirty_);
  }
  state_.meta.set_format(std::max(format, common.record_format));
  state_.meta.set_peer_version(std::max(said(state_.meta.peer_version()), common.peer_version));
  touch_meta();
  member_event("upgraded", "", "",
               "format " + std::to_string(state_.meta.format()) + " of the records, version " +
                   std::to_string(state_.meta.peer_version()) + " of the messages between hosts");
}

}  // namespace usblease::lease
