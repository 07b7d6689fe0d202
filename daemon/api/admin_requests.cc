#include "daemon/api/admin_requests.h"

#include <sys/statvfs.h>
#include <sys/timex.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "common/boottime.h"
#include "common/text.h"
#include "daemon/cluster/membership.h"
#include "daemon/lease/keys.h"

namespace usblease::api {
namespace {

constexpr std::size_t kBackupFrameBytes = 256 * 1024;
constexpr std::uint64_t kJoinTokenDefaultS = 3'600;

// Above every epoch that any home has shown, that the record knows, and above the time of day: so that two repairs of
// two copies of one store do not begin the same epoch.
std::uint64_t next_epoch(const lease::State& state) {
  std::uint64_t most = std::max(state.meta.epoch(), state.meta.floor_max() >> lease::kTokenCounterBits);
  for (const auto& [name, device] : state.devices)
    most = std::max(most, device.last_token() >> lease::kTokenCounterBits);
  return std::max(most, wall_clock_unix_s()) + 1;
}

HostStatus host_status(const lease::State& state, const record::Host& host) {
  HostStatus status;
  *status.mutable_host() = host;
  status.set_live(!host.gone());
  for (const auto& [name, device] : state.devices) {
    status.set_homed_devices(
        status.homed_devices() +
        (std::any_of(device.homes().begin(), device.homes().end(),
                     [&](const auto& home) { return home.present() && home.instance().host_id() == host.id(); })
             ? 1
             : 0));
  }
  status.set_leases(static_cast<std::uint32_t>(lease::leased_devices_at(state, host.id()).size()));
  return status;
}

void add_hosts(const lease::State& state, const std::string& coordinator, ClusterStatusReply& reply) {
  for (const auto& [id, host] : state.hosts) {
    HostStatus& status = *reply.add_hosts();
    status = host_status(state, host);
    status.set_coordinator(id == coordinator);
    if (const auto member = state.members.find(id); member != state.members.end())
      *status.mutable_member() = member->second;
  }
  // Those that have joined and never registered.
  for (const auto& [id, member] : state.members) {
    if (state.hosts.contains(id)) continue;
    HostStatus& status = *reply.add_hosts();
    status.mutable_host()->set_id(id);
    *status.mutable_member() = member;
  }
}

void add_health(const std::string& state_dir, ClusterStatusReply& reply) {
  struct statvfs disk {};
  if (statvfs(state_dir.c_str(), &disk) == 0) {
    reply.set_disk_free_bytes(disk.f_bavail * disk.f_frsize);
    reply.set_disk_size_bytes(disk.f_blocks * disk.f_frsize);
  }
  timex clock{};
  const int state = adjtimex(&clock);
  reply.set_clock_synchronized(state >= 0 && state != TIME_ERROR && (clock.status & STA_UNSYNC) == 0);
}

ServerFrame failure_of(const Error& error) {
  ServerFrame frame;
  frame.mutable_status()->set_code(code_of(error.code));
  frame.mutable_status()->set_message(error.message);
  return frame;
}

}  // namespace

bool is_for_coordinator(const ClientFrame& frame) {
  switch (frame.body_case()) {
    case ClientFrame::kClusterStatus:
    case ClientFrame::kClusterAdd:
    case ClientFrame::kClusterTransfer:
    case ClientFrame::kClusterRemove:
    case ClientFrame::kClusterRepair:
    case ClientFrame::kClusterRotate:
    case ClientFrame::kDeclareDead:
    case ClientFrame::kDrain:
    case ClientFrame::kBackup:
    case ClientFrame::kRestorePart:
      return true;
    default:
      return false;
  }
}

bool AdminRequests::handle(const std::string& principal, const ClientFrame& frame, const Responder& responder) {
  switch (frame.body_case()) {
    case ClientFrame::kClusterStatus:
      cluster_status(responder);
      return true;
    case ClientFrame::kClusterRepair:
      repair(principal, responder);
      return true;
    case ClientFrame::kDeclareDead:
      declare_dead(principal, frame.declare_dead(), responder);
      return true;
    case ClientFrame::kDrain:
      drain(principal, frame.drain(), responder);
      return true;
    case ClientFrame::kBackup:
      backup(responder);
      return true;
    case ClientFrame::kRestorePart:
      restore_part(principal, frame.restore_part(), responder);
      return true;
    case ClientFrame::kClusterTransfer:
      transfer(frame.cluster_transfer(), responder);
      return true;
    case ClientFrame::kClusterInit:
    case ClientFrame::kClusterAdd:
    case ClientFrame::kClusterJoin:
    case ClientFrame::kClusterRemove:
    case ClientFrame::kClusterRotate:
      membership(principal, frame, responder);
      return true;
    default:
      return false;
  }
}

const lease::State* AdminRequests::state_or_fail(const Responder& responder) const {
  const cluster::Coordinator* coordinator = context_.node.coordinator();
  const lease::State* state = coordinator != nullptr ? coordinator->state() : nullptr;
  if (state == nullptr)
    responder.fail(command::CODE_UNAVAILABLE,
                   "there is no coordinator now: " + context_.node.router().trouble() + "; see `usblease status`");
  return state;
}

void AdminRequests::submit(command::Command command, const Responder& responder,
                           std::function<ServerFrame(const command::Reply&)> done) {
  context_.node.router().submit(std::move(command), [responder, done = std::move(done)](const command::Reply& reply) {
    if (reply.status().code() != command::CODE_OK)
      return responder.fail(reply.status().code(), reply.status().message());
    responder.finish(done(reply));
  });
}

// --- Looking ---------------------------------------------------------------------------------------------

void AdminRequests::cluster_status(const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  const auto frame = std::make_shared<ServerFrame>(ok_frame());
  ClusterStatusReply& reply = *frame->mutable_cluster_status();
  StatusReply& status = *reply.mutable_status();
  status.set_cluster_id(context_.cluster_id);
  status.set_coordinator(context_.config.host_id);
  status.set_term(context_.node.coordinator()->term());
  status.set_store(context_.store->describe());
  status.set_store_revision(context_.node.coordinator()->revision());
  const store::Health health = context_.store->health();
  const std::string& trouble = context_.node.coordinator()->trouble();
  status.set_store_health(!health.ok ? health.message : trouble.empty() ? "ok" : trouble);
  add_counts(*state, status);
  status.set_version(context_.version);
  status.set_ttl_ms(context_.config.ttl_ms);
  reply.set_record_format(std::max(state->meta.format(), 1U));
  reply.set_peer_version(std::max(state->meta.peer_version(), 1U));
  add_hosts(*state, context_.config.host_id, reply);
  add_health(context_.config.state_dir, reply);
  if (context_.membership == nullptr) return responder.finish(std::move(*frame));
  context_.membership->store_status([frame, responder](const Result<std::vector<StoreMemberStatus>>& members) {
    if (members) {
      for (const StoreMemberStatus& member : *members) *frame->mutable_cluster_status()->add_store_members() = member;
    }
    responder.finish(std::move(*frame));
  });
}

// Everything at one revision, as it is on disk.
void AdminRequests::backup(const Responder& responder) {
  if (state_or_fail(responder) == nullptr) return;
  context_.store->read("", [this, responder](const store::ReadResult& all) {
    if (!all.ok) return responder.fail(command::CODE_UNAVAILABLE, "cannot read the store: " + all.message);
    ServerFrame frame = ok_frame();
    BackupHeader& header = *frame.mutable_backup()->mutable_header();
    header.set_format(lease::kRecordFormat);
    header.set_cluster_id(context_.cluster_id);
    header.set_revision(all.revision);
    header.set_unix_s(wall_clock_unix_s());
    header.set_version(context_.version);
    header.set_records(all.entries.size());
    std::size_t bytes = 0;
    for (const store::Entry& entry : all.entries) {
      BackupRecord& record = *frame.mutable_backup()->add_records();
      record.set_key(entry.key);
      record.set_value(entry.value);
      bytes += entry.key.size() + entry.value.size();
      if (bytes < kBackupFrameBytes) continue;
      bytes = 0;
      responder.progress(std::exchange(frame, ok_frame()));
      frame.mutable_backup();
    }
    responder.finish(std::move(frame));
  });
}

// --- Acting ----------------------------------------------------------------------------------------------

void AdminRequests::repair(const std::string& principal, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  command::Command command;
  const std::uint64_t epoch = next_epoch(*state);
  command.mutable_new_epoch()->set_epoch(epoch);
  command.mutable_new_epoch()->set_principal(principal);
  submit(std::move(command), responder, [epoch](const command::Reply& reply) {
    ServerFrame frame = ok_frame();
    frame.mutable_cluster_repair()->set_epoch(epoch);
    frame.mutable_cluster_repair()->set_leases_left(reply.leases_left());
    return frame;
  });
}

void AdminRequests::declare_dead(const std::string& principal, const DeclareDead& request, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  const auto host = state->hosts.find(request.host_id());
  if (host == state->hosts.end()) {
    return responder.fail(command::CODE_NOT_FOUND, "there is no host " + escape_text(request.host_id().substr(0, 64)) +
                                                       "; `usblease cluster status` shows them");
  }
  // A host that answers is not powered off, whatever anybody says: to believe it would give its devices to two guests.
  if (!host->second.gone()) {
    return responder.fail(command::CODE_REFUSED, "host " + request.host_id() +
                                                     " is alive: its session goes on; `usblease host drain` empties a "
                                                     "host in order");
  }
  command::Command command;
  command.mutable_declare_dead()->set_host_id(request.host_id());
  command.mutable_declare_dead()->set_boot_id(host->second.boot_id());
  command.mutable_declare_dead()->set_principal(principal);
  submit(std::move(command), responder, [boot_id = host->second.boot_id()](const command::Reply& /*reply*/) {
    ServerFrame frame = ok_frame();
    frame.mutable_declare_dead()->set_boot_id(boot_id);
    return frame;
  });
}

void AdminRequests::drain(const std::string& principal, const Drain& request, const Responder& responder) {
  command::Command command;
  command::DrainHost& c = *command.mutable_drain_host();
  c.set_host_id(request.host_id());
  c.set_undo(request.undo());
  c.set_grace_ms(request.grace_ms());
  c.set_principal(principal);
  submit(std::move(command), responder, [host_id = request.host_id()](const command::Reply& reply) {
    ServerFrame frame = ok_frame();
    frame.mutable_drain()->set_host_id(host_id);
    frame.mutable_drain()->set_leases_left(reply.leases_left());
    return frame;
  });
}

void AdminRequests::restore_part(const std::string& principal, const RestorePart& request, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  command::Command command;
  command::Restore& c = *command.mutable_restore();
  c.set_begin(request.begin());
  c.set_end(request.end());
  const std::uint64_t epoch = request.end() ? next_epoch(*state) : 0;
  c.set_epoch(epoch);
  *c.mutable_devices() = request.devices();
  *c.mutable_hosts() = request.hosts();
  c.set_principal(principal);
  submit(std::move(command), responder, [epoch](const command::Reply& reply) {
    ServerFrame frame = ok_frame();
    frame.mutable_restore_part()->set_epoch(epoch);
    frame.mutable_restore_part()->set_leases_left(reply.leases_left());
    return frame;
  });
}

void AdminRequests::transfer(const ClusterTransfer& request, const Responder& responder) {
  const cluster::Coordinator* coordinator = context_.node.coordinator();
  if (state_or_fail(responder) == nullptr) return;
  context_.node.transfer(request.host_id(), [responder, host_id = request.host_id(),
                                             term = coordinator->term()](const Result<void>& done) {
    if (!done) return responder.finish(failure_of(done.error()));
    ServerFrame frame = ok_frame();
    frame.mutable_cluster_transfer()->set_host_id(host_id);
    frame.mutable_cluster_transfer()->set_term(term + 1);
    responder.finish(std::move(frame));
  });
}

void AdminRequests::membership(const std::string& principal, const ClientFrame& frame, const Responder& responder) {
  if (context_.membership == nullptr)
    return responder.fail(command::CODE_UNAVAILABLE, "this daemon cannot change the membership of its cluster");
  const auto finish = [responder](auto mutable_body) {
    return [responder, mutable_body](const auto& done) {
      if (!done) return responder.finish(failure_of(done.error()));
      ServerFrame reply = ok_frame();
      *(reply.*mutable_body)() = *done;
      responder.finish(std::move(reply));
    };
  };
  cluster::Membership& membership = *context_.membership;
  if (frame.has_cluster_init()) {
    const auto& given = frame.cluster_init().addresses();
    membership.init({given.begin(), given.end()}, principal, finish(&ServerFrame::mutable_cluster_init));
  } else if (frame.has_cluster_add()) {
    const std::uint64_t valid_s = frame.cluster_add().valid_s();
    membership.add(frame.cluster_add().host_id(), valid_s == 0 ? kJoinTokenDefaultS : valid_s, principal,
                   finish(&ServerFrame::mutable_cluster_add));
  } else if (frame.has_cluster_join()) {
    membership.join(frame.cluster_join().token(), finish(&ServerFrame::mutable_cluster_join));
  } else if (frame.has_cluster_rotate()) {
    membership.rotate(principal, finish(&ServerFrame::mutable_cluster_rotate));
  } else {
    membership.remove(frame.cluster_remove().host_id(), principal, finish(&ServerFrame::mutable_cluster_remove));
  }
}

}  // namespace usblease::api
