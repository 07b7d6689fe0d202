#include "daemon/host/acquisitions.h"

#include <algorithm>

#include "common/boottime.h"
#include "daemon/lease/timing.h"

namespace usblease::host {
namespace {

// While a request waits it is repeated, which is idempotent: the answer tells who is in the way now, and an answer that
// was lost is found again.
constexpr std::uint64_t kRepeatNs = 2'000 * lease::kNsPerMs;
constexpr std::uint64_t kUnavailableRetryNs = 300 * lease::kNsPerMs;
// How long a request outlasts its wait, for a coordinator that is away.
constexpr std::uint64_t kPatienceNs = 5'000 * lease::kNsPerMs;

}  // namespace

void Acquisitions::acquire(command::Acquire request, Progress progress, Done done) {
  const std::string id = request.request_id();
  Waiting& waiting = waiting_[id];
  waiting.ends_ns = boottime_now_ns() + request.wait_ms() * lease::kNsPerMs + kPatienceNs;
  waiting.request = std::move(request);
  waiting.progress = std::move(progress);
  waiting.done = std::move(done);
  send(id);
}

void Acquisitions::send(const std::string& request_id) {
  const auto waiting = waiting_.find(request_id);
  if (waiting == waiting_.end()) return;
  waiting->second.in_flight = true;
  command::Command command;
  *command.mutable_acquire() = waiting->second.request;
  link_.submit(std::move(command), [this, alive = std::weak_ptr(alive_), request_id](const command::Reply& reply) {
    if (!alive.expired()) on_reply(request_id, reply);
  });
}

void Acquisitions::repeat() {
  const std::uint64_t now_ns = boottime_now_ns();
  std::vector<std::string> due;
  for (const auto& [id, waiting] : waiting_) {
    // What is under way is repeated by the link; at the end of a wait a repeat would be a new request.
    if (!waiting.in_flight && now_ns + kPatienceNs < waiting.ends_ns) due.push_back(id);
  }
  for (const std::string& id : due) send(id);
}

void Acquisitions::on_reply(const std::string& request_id, const command::Reply& reply) {
  if (const auto late = ended_.extract(request_id); !late.empty()) {
    const command::Code code = reply.status().code();
    if (code == command::CODE_OK || code == command::CODE_QUEUED) take_back(late.mapped(), "its wait was over");
    return;
  }
  const auto found = waiting_.find(request_id);
  if (found == waiting_.end()) return;
  Waiting& waiting = found->second;
  waiting.in_flight = false;
  const bool queued = reply.status().code() == command::CODE_QUEUED;
  const bool try_again = reply.status().code() == command::CODE_UNAVAILABLE && boottime_now_ns() < waiting.ends_ns &&
                         waiting.request.wait_ms() != 0;
  if (!queued && !try_again) return finish(request_id, reply);
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t repeat_ns = now_ns + (queued ? kRepeatNs : kUnavailableRetryNs);
  if (repeat_ns + kPatienceNs < waiting.ends_ns) {
    waiting.repeat = run_after(repeat_ns - now_ns, [this, request_id] { send(request_id); });
  } else {
    // The coordinator is about to say that the wait is over; a repeat after that would be a new request.
    waiting.repeat =
        run_after(waiting.ends_ns - std::min(now_ns, waiting.ends_ns), [this, request_id] { give_up(request_id); });
  }
  if (queued && waiting.progress) waiting.progress(reply);
}

// Nobody said so in time: the coordinator is away, or its word was lost.
void Acquisitions::give_up(const std::string& request_id) {
  const auto waiting = waiting_.find(request_id);
  if (waiting == waiting_.end()) return;
  command::Reply reply;
  reply.mutable_status()->set_code(command::CODE_TIMED_OUT);
  reply.mutable_status()->set_message("the wait is over");
  take_back(waiting->second.request, "the wait is over");
  finish(request_id, reply);
}

void Acquisitions::settled(const std::string& request_id, const command::Reply& reply) { finish(request_id, reply); }

void Acquisitions::finish(const std::string& request_id, const command::Reply& reply) {
  auto waiting = waiting_.extract(request_id);
  if (waiting.empty()) return;
  if (waiting.mapped().in_flight && reply.status().code() != command::CODE_OK)
    ended_[request_id] = waiting.mapped().request;
  waiting.mapped().done(reply);
}

void Acquisitions::abandon(const std::string& request_id, const std::string& why) {
  auto waiting = waiting_.extract(request_id);
  if (!waiting.empty()) take_back(waiting.mapped().request, why);
}

// The coordinator ends what it has of this start by itself; what it could not take yet is known only here.
void Acquisitions::start_ended(const record::Start& start) {
  std::vector<std::string> over;
  for (const auto& [id, waiting] : waiting_) {
    if (waiting.request.start().nonce() == start.nonce()) over.push_back(id);
  }
  command::Reply reply;
  reply.mutable_status()->set_code(command::CODE_REFUSED);
  reply.mutable_status()->set_message("the guest's start has ended");
  for (const std::string& id : over) finish(id, reply);
}

// Cancelled first: after that the answer is final, and whatever this request had been given by then is given back.
void Acquisitions::take_back(const command::Acquire& request, const std::string& why) {
  command::Command cancel;
  cancel.mutable_cancel_request()->set_request_id(request.request_id());
  cancel.mutable_cancel_request()->set_reason(why);
  cancel.mutable_cancel_request()->set_code(command::CODE_REFUSED);
  give_back_(std::move(cancel));
  command::Command release;
  *release.mutable_release()->mutable_start() = request.start();
  *release.mutable_release()->mutable_devices() = request.devices();
  release.mutable_release()->set_reason(why);
  release.mutable_release()->set_principal(request.principal());
  release.mutable_release()->set_request_id(request.request_id());
  give_back_(std::move(release));
}

}  // namespace usblease::host
