#include "daemon/cluster/router.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

using lease::kNsPerMs;

constexpr std::size_t kPendingMax = 16 * 1024;
constexpr std::size_t kForwardsMax = 4096;
constexpr std::uint64_t kAnswerWaitNs = 5'000 * kNsPerMs;
constexpr std::uint64_t kSearchNs = 100 * kNsPerMs;
constexpr int kSendsMax = 4;  // of one command; an election that takes more than its wait ends it anyway

command::Reply unavailable(const std::string& why) {
  command::Reply reply;
  reply.mutable_status()->set_code(command::CODE_UNAVAILABLE);
  reply.mutable_status()->set_message(why);
  return reply;
}

peer::RenewalAnswer refusal(std::uint64_t seq, const std::string& why) {
  peer::RenewalAnswer answer;
  answer.set_seq(seq);
  answer.mutable_status()->set_code(command::CODE_UNAVAILABLE);
  answer.mutable_status()->set_message(why);
  return answer;
}

bool same(const peer::CoordinatorIs& a, const peer::CoordinatorIs& b) {
  return a.host_id() == b.host_id() && a.term() == b.term();
}

}  // namespace

// --- Where the coordinator is --------------------------------------------------------------------------

void Router::learned(const std::string& from, const peer::CoordinatorIs& says) {
  // Whoever holds the key hears from the store that it does not any more, and from nobody else.
  if (says.term() == 0 || (local_ != nullptr && local_->holding())) return;
  const bool own_word = says.host_id() == from;
  if (own_word) denied_.erase(from);
  const auto denied = denied_.find(says.host_id());
  if (denied != denied_.end() && says.term() <= denied->second) return;
  if (same(says, known_)) {
    // It says so itself, again: perhaps it did not know yet when it was asked.
    if (place_ == Place::kNone) settle();
    return;
  }
  const bool newer = says.term() > known_.term();
  // After a store went back in time the next coordinator has a lesser term, and the one of before never comes again.
  const bool instead = own_word && (place_ == Place::kNone || from == known_.host_id());
  if (!newer && !instead) return;
  // Whoever is led to where he cannot go is no better off than here, and would be led back and forth.
  if (!own_word && abroad() && !reaches(says.host_id())) return;
  known_ = says;
  settle();
}

void Router::store_shows(const std::string& host_id, std::uint64_t term) {
  if (term == 0) return;
  known_.set_host_id(host_id);
  known_.set_term(term);
  denied_.erase(host_id);
  settle();
}

bool Router::reaches(const std::string& host_id) const {
  return host_id == host_id_ || (calls_ != nullptr && calls_->connected(host_id));
}

void Router::local_active(bool active) {
  if (!active && place_ == Place::kLocal) leave();
  settle();
}

void Router::peer_up(const std::string& /*any may know who the coordinator is*/) { settle(); }

void Router::peer_down(const std::string& host_id) {
  if (abroad() && host_id == at_.host_id()) leave();
  settle();
}

// Goes where the coordinator is thought to be, if that is reachable; else asks around until it has somewhere to go.
void Router::settle() {
  if (place_ == Place::kLocal && local_->holding()) return;  // perhaps it reads its state anew just now
  if (local_ != nullptr && local_->active()) {
    leave();
    return arrive(Place::kLocal);
  }
  if (abroad() && same(at_, known_)) return;
  leave();
  if (known_.term() != 0 && known_.host_id() != host_id_ && reaches(known_.host_id())) subscribe();
  if (place_ == Place::kNone) search_later();
}

void Router::leave() {
  const bool was_placed = placed();
  place_ = Place::kNone;
  partial_view_.reset();
  if (was_placed && events_.away) events_.away();
  for (auto& [id, lost] : std::exchange(forwards_, {})) {
    calls_->forget(lost.call);
    lost.ended(nullptr);
  }
}

void Router::subscribe() {
  at_ = known_;
  place_ = Place::kSubscribing;
  peer::PeerRequest request;
  request.mutable_subscribe();
  const auto asked = calls_->ask(at_.host_id(), std::move(request), [this, at = at_](const peer::PeerAnswer* answer) {
    if (answer != nullptr && answer->has_not_coordinator()) not_coordinator(at.host_id(), answer->not_coordinator());
  });
  if (!asked) place_ = Place::kNone;
}

void Router::arrive(Place place) {
  place_ = place;
  search_.cancel();
  if (events_.ready) events_.ready();
  send_waiting();
}

// Who was thought to be the coordinator says that it is not, or not yet.
void Router::not_coordinator(const std::string& host_id, const peer::CoordinatorIs& says) {
  if (host_id == known_.host_id()) {
    denied_[host_id] = std::max(denied_[host_id], known_.term());
    known_.Clear();
  }
  if (abroad() && host_id == at_.host_id()) leave();
  // Whoever names itself is about to find out; it is asked again in a moment.
  if (says.host_id() != host_id) learned(host_id, says);
  if (place_ == Place::kNone) search_later();
}

void Router::search_later() {
  if (search_ || calls_ == nullptr) return;
  search_ = run_after(kSearchNs, [this] {
    search_.cancel();
    if (place_ != Place::kNone) return;
    settle();
    if (place_ != Place::kNone) return;
    for (const std::string& host_id : calls_->hosts()) {
      peer::PeerRequest request;
      request.mutable_who_is_coordinator();
      calls_->ask(host_id, std::move(request), [this, host_id](const peer::PeerAnswer* answer) {
        if (answer != nullptr && answer->has_coordinator_is()) learned(host_id, answer->coordinator_is());
      });
    }
    search_later();
  });
}

std::string Router::trouble() const {
  if (local_ != nullptr && !local_->trouble().empty()) return local_->trouble();
  if (known_.term() == 0) return "nobody says who the coordinator is";
  if (known_.host_id() == host_id_) return "this host is about to become the coordinator";
  if (calls_ == nullptr || !calls_->connected(known_.host_id()))
    return "the coordinator, host " + known_.host_id() + ", cannot be reached from here";
  return "the coordinator, host " + known_.host_id() + ", is not ready yet";
}

// --- What it pushes --------------------------------------------------------------------------------------

void Router::local_view(const peer::HostView& view) {
  if (events_.view) events_.view(view);
}

void Router::local_settled(const std::string& request_id, const command::Reply& reply) {
  if (events_.settled) events_.settled(request_id, reply);
}

void Router::pushed(const std::string& from, const peer::PeerAnswer& push) {
  if (push.has_coordinator_is()) {
    const peer::CoordinatorIs& says = push.coordinator_is();
    // Its word against what was said of it, also under a lesser term.
    const bool thought = from == known_.host_id() || (abroad() && from == at_.host_id());
    return thought && says.host_id() != from ? not_coordinator(from, says) : learned(from, says);
  }
  // A coordinator that this host has left has nothing to say.
  if (!abroad() || from != at_.host_id()) return;
  if (push.has_view()) return take_view(push.view());
  if (push.has_settled() && events_.settled) events_.settled(push.settled().request_id(), push.settled().reply());
}

// Puts together what was too large for one frame.
void Router::take_view(const peer::HostView& part) {
  if (!partial_view_) partial_view_.emplace();
  if (partial_view_->devices_size() + part.devices_size() > static_cast<int>(lease::kDevicesMax) ||
      partial_view_->requests_size() + part.requests_size() > static_cast<int>(lease::kRequestsMax)) {
    log::error("the coordinator's view of this host is out of bounds", {{"HOST", at_.host_id()}});
    partial_view_.reset();
    return;
  }
  partial_view_->MergeFrom(part);
  if (part.more()) return;
  peer::HostView view = std::move(*partial_view_);
  partial_view_.reset();
  view.clear_more();
  const bool whole = view.whole();
  if (place_ == Place::kSubscribing && !whole) return;  // of an earlier subscription
  if (events_.view) events_.view(view);
  if (place_ == Place::kSubscribing && whole) arrive(Place::kRemote);
}

// --- Commands ----------------------------------------------------------------------------------------------

void Router::submit(command::Command command, std::function<void(command::Reply)> reply) {
  if (pending_.size() >= kPendingMax)
    return post(
        [reply = std::move(reply)] { reply(unavailable("too many requests wait for the coordinator; try again")); });
  const std::uint64_t id = next_id_++;
  pending_.emplace(id, Pending{std::move(command), std::move(reply), boottime_now_ns() + kAnswerWaitNs});
  if (placed()) send(id);
  if (!expiry_) schedule_expiry();
}

void Router::send_waiting() {
  std::vector<std::uint64_t> waiting;
  for (const auto& [id, pending] : pending_) {
    if (pending.waits) waiting.push_back(id);
  }
  for (const std::uint64_t id : waiting) {
    if (!placed()) return;
    send(id);
  }
}

void Router::send(std::uint64_t id) {
  const auto found = pending_.find(id);
  if (found == pending_.end()) return;
  Pending& pending = found->second;
  const int sent = ++pending.sent;
  if (sent > kSendsMax)
    return finish(id, sent, unavailable("coordinators changed too often to answer this; look whether it was done"));
  pending.waits = false;
  if (place_ == Place::kRemote) return send_remote(id, sent);
  local_->submit(pending.command, [this, alive = std::weak_ptr(alive_), id, sent](std::optional<command::Reply> reply) {
    if (alive.expired()) return;
    if (!reply) return hold(id, sent);
    finish(id, sent, std::move(*reply));
  });
}

void Router::send_remote(std::uint64_t id, int sent) {
  peer::PeerRequest request;
  *request.mutable_command() = pending_.at(id).command;
  const auto asked =
      calls_->ask(at_.host_id(), std::move(request), [this, id, sent, at = at_](const peer::PeerAnswer* answer) {
        if (answer == nullptr) return hold(id, sent);
        if (answer->has_reply()) return finish(id, sent, answer->reply());
        if (answer->has_not_coordinator()) {
          hold(id, sent);
          return not_coordinator(at.host_id(), answer->not_coordinator());
        }
        command::Reply reply;
        *reply.mutable_status() = answer->failed();
        if (reply.status().code() == command::CODE_UNSPECIFIED)
          reply = unavailable("host " + at.host_id() + " gave an answer that this version does not know");
        finish(id, sent, std::move(reply));
      });
  if (!asked)
    post([this, alive = std::weak_ptr(alive_), id, sent] {
      if (!alive.expired()) finish(id, sent, unavailable("the way to the coordinator is full; try again"));
    });
}

// Without an answer: it waits for the next coordinator.
void Router::hold(std::uint64_t id, int sent) {
  const auto found = pending_.find(id);
  if (found == pending_.end() || found->second.sent != sent) return;
  found->second.waits = true;
  // A coordinator that was away so shortly that this host has not noticed.
  post([this, alive = std::weak_ptr(alive_), id] {
    if (alive.expired() || !placed()) return;
    const auto again = pending_.find(id);
    if (again != pending_.end() && again->second.waits) send(id);
  });
}

void Router::finish(std::uint64_t id, int sent, command::Reply reply) {
  const auto found = pending_.find(id);
  if (found == pending_.end() || found->second.sent != sent) return;
  const auto done = std::move(found->second.reply);
  pending_.erase(found);
  done(std::move(reply));
}

void Router::schedule_expiry() {
  expiry_.cancel();
  if (pending_.empty()) return;
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t due_ns = pending_.begin()->second.expires_ns;
  expiry_ = run_after(due_ns > now_ns ? due_ns - now_ns : 0, [this] { expire(); });
}

void Router::expire() {
  const std::uint64_t now_ns = boottime_now_ns();
  std::vector<Pending> expired;
  while (!pending_.empty() && pending_.begin()->second.expires_ns <= now_ns) {
    expired.push_back(std::move(pending_.begin()->second));
    pending_.erase(pending_.begin());
  }
  schedule_expiry();
  const std::string why = ready() ? "the coordinator did not answer in time" : trouble();
  for (const Pending& late : expired) late.reply(unavailable("no coordinator decided in time: " + why + "; try again"));
}

// --- Renewals and clients' requests -------------------------------------------------------------------------

void Router::renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) {
  if (place_ == Place::kLocal) return local_->renew(std::move(renewal), std::move(answer));
  const std::uint64_t seq = renewal.seq();
  if (place_ == Place::kRemote) {
    peer::PeerRequest request;
    *request.mutable_renewal() = std::move(renewal);
    const auto asked =
        calls_->ask(at_.host_id(), std::move(request), [this, seq, answer, at = at_](const peer::PeerAnswer* answered) {
          if (answered != nullptr && answered->has_renewal()) return answer(answered->renewal());
          answer(refusal(seq, "the coordinator, host " + at.host_id() + ", did not answer"));
          if (answered != nullptr && answered->has_not_coordinator())
            not_coordinator(at.host_id(), answered->not_coordinator());
        });
    if (asked) return;
  }
  post([seq, answer = std::move(answer)] { answer(refusal(seq, "there is no coordinator now")); });
}

std::uint64_t Router::forward(peer::Forward request, std::function<void(const std::string&, bool)> frame,
                              std::function<void(const command::Status*)> ended) {
  if (place_ != Place::kRemote || forwards_.size() >= kForwardsMax) return 0;
  const std::uint64_t id = next_id_++;
  peer::PeerRequest message;
  *message.mutable_forward() = std::move(request);
  const auto call = calls_->ask(at_.host_id(), std::move(message),
                                [this, id](const peer::PeerAnswer* answer) { forward_answered(id, answer); });
  if (!call) return 0;
  forwards_.emplace(id, Forwarded{call, std::move(frame), std::move(ended)});
  return id;
}

void Router::forward_answered(std::uint64_t id, const peer::PeerAnswer* answer) {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return;
  if (answer != nullptr && answer->has_server_frame() && answer->more()) {
    const auto frame = found->second.frame;  // it may abandon itself
    return frame(answer->server_frame(), true);
  }
  const Forwarded forwarded = std::move(found->second);
  forwards_.erase(found);
  if (answer != nullptr && answer->has_server_frame()) return forwarded.frame(answer->server_frame(), false);
  if (answer != nullptr && answer->has_failed()) return forwarded.ended(&answer->failed());
  forwarded.ended(nullptr);
  if (answer != nullptr && answer->has_not_coordinator())
    not_coordinator(forwarded.call.host_id, answer->not_coordinator());
}

void Router::abandon(std::uint64_t forward_id) {
  const auto found = forwards_.extract(forward_id);
  if (found.empty()) return;
  const PeerCalls::CallId& call = found.mapped().call;
  calls_->forget(call);
  peer::PeerRequest request;
  request.mutable_abandon()->set_id(call.id);
  calls_->tell(call.host_id, std::move(request));
}

}  // namespace usblease::cluster
