#include "daemon/store/etcd_upkeep.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "daemon/store/etcd_alarm.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

// However young it is, more history than this is dropped.
constexpr std::uint64_t kHistoryRevisionsMax = 100'000;
constexpr milliseconds kCompactBound{10'000};
constexpr milliseconds kDefragmentBound{60'000};
constexpr milliseconds kAlarmBound{5'000};
constexpr int kInVainRounds = 10;

}  // namespace

EtcdUpkeep::EtcdUpkeep(EtcdLoop& loop, EtcdEndpoints& endpoints, const EtcdOptions& options)
    : loop_(loop),
      endpoints_(endpoints),
      every_(std::max(options.upkeep_every_ms, 10U)),
      history_(options.history_ms),
      defragment_bytes_(options.defragment_bytes) {}

void EtcdUpkeep::set(bool on) {
  if (std::exchange(on_, on) == on) return;
  next_.cancel();
  samples_.clear();
  if (on_ && !busy_) round();
}

void EtcdUpkeep::rest() {
  busy_ = false;
  if (on_) next_ = loop_.run_after(every_, [this] { round(); });
}

void EtcdUpkeep::round() {
  busy_ = true;
  compact();
}

// What was the present revision when history began; 0: that is not known yet.
std::uint64_t EtcdUpkeep::old_revision() {
  std::uint64_t now_revision = 0;
  for (const EtcdEndpointPtr& endpoint : endpoints_.all()) {
    if (endpoint->fit) now_revision = std::max(now_revision, endpoint->status.revision);
  }
  // Without room, history is what can be given up.
  if (endpoints_.no_space()) return now_revision;
  const auto now = EtcdLoop::Clock::now();
  samples_.push_back({now, now_revision});
  std::uint64_t old = now_revision > kHistoryRevisionsMax ? now_revision - kHistoryRevisionsMax : 0;
  while (!samples_.empty() && samples_.front().when + history_ <= now) {
    old = std::max(old, samples_.front().revision);
    samples_.pop_front();
  }
  return old;
}

void EtcdUpkeep::compact() {
  const std::uint64_t revision = old_revision();
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!on_ || !endpoint) return rest();
  if (revision <= compacted_) return next_member();  // nothing was written since: then nothing is written now
  etcdserverpb::CompactionRequest request;
  request.set_revision(static_cast<std::int64_t>(revision));
  request.set_physical(endpoints_.no_space());  // then room is needed at once
  start_unary<etcdserverpb::CompactionResponse>(
      loop_, endpoint, kCompactBound, EtcdNeeds::kLeader,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->kv->PrepareAsyncCompact(context, request, queue);
      },
      [this, revision](const grpc::Status& status, const etcdserverpb::CompactionResponse&) {
        // kCompacted: somebody else has done it.
        if (status.ok() || etcd_fault(status) == EtcdFault::kCompacted) compacted_ = revision;
        if (!status.ok()) log::debug("etcd does not drop its history", {{"ERROR", etcd_message(status)}});
        next_member();
      });
}

bool EtcdUpkeep::wasteful(const EtcdEndpoint& endpoint) const {
  const EtcdStatus& status = endpoint.status;
  const std::uint64_t unused = status.db_bytes - std::min(status.db_bytes_in_use, status.db_bytes);
  return unused > defragment_bytes_ && unused > status.db_bytes_in_use;
}

// While one member does not answer, the others must be enough for all.
bool EtcdUpkeep::all_well() const {
  return std::all_of(endpoints_.all().begin(), endpoints_.all().end(),
                     [](const EtcdEndpointPtr& endpoint) { return endpoint->fit && !endpoint->resting; });
}

// Nothing was written since the last alarm was ended, and all the same there is one again: it is full of what is
// needed. Once in a while it is tried again, because the quota may have been raised.
bool EtcdUpkeep::in_vain() const {
  return alarm_revision_ != 0 && alarm_revision_ == compacted_ &&
         EtcdLoop::Clock::now() < alarm_ended_ + kInVainRounds * every_;
}

void EtcdUpkeep::next_member() {
  if (!on_ || !all_well()) return rest();
  const bool urgent = endpoints_.no_space();
  if (urgent && in_vain()) return rest();
  if (!urgent) freed_.clear();
  EtcdEndpointPtr next;
  for (const EtcdEndpointPtr& endpoint : endpoints_.all()) {
    // What was freed just now still counts as used, so with an alarm each one gets its turn.
    if (urgent ? freed_.contains(endpoint->address) : !wasteful(*endpoint)) continue;
    // The leader last: the fewest calls wait.
    if (!next || next->status.leader_id == next->status.member_id) next = endpoint;
  }
  if (next) return defragment(next);
  if (urgent) return end_space_alarm();
  rest();
}

void EtcdUpkeep::defragment(const EtcdEndpointPtr& endpoint) {
  // A sole member has no other to go to: its calls wait for it.
  const bool others = endpoints_.all().size() > 1;
  if (others) endpoints_.rest(endpoint, true);
  start_unary<etcdserverpb::DefragmentResponse>(
      loop_, endpoint, kDefragmentBound, EtcdNeeds::kNothing,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->maintenance->PrepareAsyncDefragment(context, etcdserverpb::DefragmentRequest(), queue);
      },
      [this, endpoint](const grpc::Status& status, const etcdserverpb::DefragmentResponse&) {
        endpoints_.rest(endpoint, false);
        if (!status.ok()) {
          log::warning("a member of etcd was not defragmented",
                       {{"PEER", endpoint->address}, {"ERROR", etcd_message(status)}});
          return rest();
        }
        log::info("a member of etcd was defragmented", {{"PEER", endpoint->address}});
        freed_.insert(endpoint->address);
        // Without need it is one member in a round: its size is only known when it has said so again.
        endpoints_.no_space() ? next_member() : rest();
      });
}

void EtcdUpkeep::end_space_alarm() {
  const EtcdEndpointPtr endpoint = endpoints_.pick();
  if (!on_ || !endpoint) return rest();
  end_space_alarms(loop_, endpoint, kAlarmBound, [this](const grpc::Status& status) {
    freed_.clear();
    alarm_revision_ = compacted_;
    alarm_ended_ = EtcdLoop::Clock::now();
    if (status.ok()) log::info("etcd was told that it has room again");
    rest();
  });
}

}  // namespace usblease::store
