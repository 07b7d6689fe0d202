#include "daemon/cluster/renewals.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/mutant.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

constexpr std::size_t kWaitingMax = 4096;

}  // namespace

Renewals::Renewals(store::Store& store, std::function<bool(const store::Entry&)> still_ours,
                   std::function<peer::RenewalAnswer(const peer::Renewal&, bool)> answer_of,
                   std::function<void()> deposed)
    : store_(store),
      still_ours_(std::move(still_ours)),
      answer_of_(std::move(answer_of)),
      deposed_(std::move(deposed)) {}

void Renewals::arrive(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) {
  if (waiting_.size() >= kWaitingMax) return post([refusal = answer_of_(renewal, false), answer] { answer(refusal); });
  if (MUTANT(renewal_without_read)) return answer(answer_of_(renewal, true));
  const std::uint64_t id = next_id_++;
  waiting_[id] = {std::move(renewal), std::move(answer)};
  gate_.arrive(id);
  read_if_due();
}

void Renewals::refuse_all() {
  for (auto& [id, waiting] : std::exchange(waiting_, {})) waiting.answer(answer_of_(waiting.renewal, false));
}

void Renewals::read_if_due() {
  const auto due_ns = gate_.next_read_ns();
  if (!due_ns) return;
  const std::uint64_t now_ns = boottime_now_ns();
  if (*due_ns > now_ns) {
    read_timer_ = run_after(*due_ns - now_ns, [this] { read_if_due(); });
    return;
  }
  gate_.read_began(now_ns);
  store_.read(lease::kCoordinatorKey, [this, alive = std::weak_ptr(alive_)](const store::ReadResult& result) {
    if (!alive.expired()) read_ended(result);
  });
}

void Renewals::read_ended(const store::ReadResult& result) {
  const bool ours = result.ok && std::any_of(result.entries.begin(), result.entries.end(), still_ours_);
  for (const std::uint64_t id : gate_.read_ended()) answer(id, ours);
  read_if_due();
  // A read that failed says nothing about the key.
  if (result.ok && !ours) deposed_();
}

void Renewals::answer(std::uint64_t id, bool ours) {
  auto waiting = waiting_.extract(id);
  if (!waiting.empty()) waiting.mapped().answer(answer_of_(waiting.mapped().renewal, ours));
}

}  // namespace usblease::cluster
