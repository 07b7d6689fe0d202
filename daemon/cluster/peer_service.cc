#include "daemon/cluster/peer_service.h"

#include <utility>

#include "common/frame.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "daemon/cluster/peer_rules.h"

namespace usblease::cluster {
namespace {

// A view is cut into parts of about this size; one record has at most 64 KiB.
constexpr std::size_t kViewPartBytes = kFramePayloadMax / 2;

template <typename Part>
void send_full_parts(Part& part, const std::function<void(peer::HostView&)>& push, std::size_t& bytes,
                     std::size_t more_bytes) {
  bytes += more_bytes;
  if (bytes < kViewPartBytes) return;
  part.set_more(true);
  push(part);
  part.Clear();
  bytes = 0;
}

// Calls `push` for each part; the last has more = false.
void cut_view(const peer::HostView& view, const std::function<void(peer::HostView&)>& push) {
  peer::HostView part;
  part.set_whole(view.whole());
  std::size_t bytes = 0;
  for (const auto& device : view.devices()) {
    *part.add_devices() = device;
    send_full_parts(part, push, bytes, device.ByteSizeLong());
  }
  for (const auto& request : view.requests()) {
    *part.add_requests() = request;
    send_full_parts(part, push, bytes, request.ByteSizeLong());
  }
  for (const auto& ended : view.ended_requests()) {
    part.add_ended_requests(ended);
    send_full_parts(part, push, bytes, ended.size() + 4);
  }
  push(part);
}

}  // namespace

PeerService::PeerService(Transport& transport, Coordinator* coordinator, PeerServiceHooks hooks)
    : transport_(transport), coordinator_(coordinator), hooks_(std::move(hooks)) {}

void PeerService::accepted(AcceptedId id, const std::string& host_id) {
  open_[id].host_id = host_id;
  peer::PeerAnswer push;
  *push.mutable_coordinator_is() = hooks_.who();
  send(id, push);
}

void PeerService::gone(AcceptedId id) {
  auto lost = open_.extract(id);
  if (lost.empty()) return;
  unsubscribe(lost.mapped());
  for (const auto& [request_id, client_gone] : lost.mapped().forwards) client_gone();
}

void PeerService::request(AcceptedId id, const std::string& payload) {
  const auto open = open_.find(id);
  if (open == open_.end()) return;
  peer::PeerRequest request;
  if (!request.ParseFromString(payload) || request.id() == 0) {
    log::warning("hung up on a host that sent what is no request of this version of usblease",
                 {{"HOST", open->second.host_id}});
    return transport_.drop(id);
  }
  serve(id, open->second, std::move(request));
}

void PeerService::serve(AcceptedId id, Open& open, peer::PeerRequest request) {
  using Body = peer::PeerRequest::BodyCase;
  const bool has_no_answer = request.has_abandon() || request.has_gone_vote();
  if (!has_no_answer && open.unanswered >= kRequestsPerPeerMax)
    return fail(id, request.id(), command::CODE_UNAVAILABLE, "too many requests of this host are unanswered");
  switch (request.body_case()) {
    case Body::kCommand:
      return command(id, open, std::move(request));
    case Body::kRenewal:
      return renewal(id, open, std::move(request));
    case Body::kSubscribe:
      return subscribe(id, open, request);
    case Body::kForward:
      return forward(id, open, request);
    case Body::kAbandon:
      return abandon(open, request.abandon().id());
    case Body::kWhoIsCoordinator: {
      peer::PeerAnswer answer;
      answer.set_id(request.id());
      *answer.mutable_coordinator_is() = hooks_.who();
      return send(id, answer);
    }
    case Body::kGoneVote:
    case Body::kStandNow:
      return candidate(id, open, request);
    default:
      break;
  }
  const auto answer = [this, alive = std::weak_ptr(alive_), id, request_id = request.id()](peer::PeerAnswer out) {
    if (alive.expired()) return;
    out.set_id(request_id);
    end(id, out);
  };
  ++open.unanswered;
  if (hooks_.other && hooks_.other(open.host_id, request, answer)) return;
  peer::PeerAnswer unknown;
  unknown.mutable_failed()->set_code(command::CODE_BAD_REQUEST);
  unknown.mutable_failed()->set_message("this version of usblease does not know that request");
  answer(std::move(unknown));
}

// --- For the coordinator --------------------------------------------------------------------------------

void PeerService::command(AcceptedId id, Open& open, peer::PeerRequest request) {
  if (coordinator_ == nullptr || !coordinator_->holding()) return send(id, not_coordinator(request.id()));
  // Whose request it is, only the state says.
  if (!coordinator_->active() && request.command().has_cancel_request())
    return fail(id, request.id(), command::CODE_UNAVAILABLE, "the coordinator is reading its state; try again");
  if (const auto why = restrict_command(open.host_id, coordinator_->state(), *request.mutable_command())) {
    log::warning("refused a command of another host", {{"HOST", open.host_id}, {"ERROR", *why}});
    return fail(id, request.id(), command::CODE_DENIED, *why);
  }
  ++open.unanswered;
  coordinator_->submit(
      std::move(*request.mutable_command()),
      [this, alive = std::weak_ptr(alive_), id, request_id = request.id()](std::optional<command::Reply> reply) {
        if (alive.expired()) return;
        if (!reply) return end(id, not_coordinator(request_id));
        peer::PeerAnswer answer;
        answer.set_id(request_id);
        *answer.mutable_reply() = std::move(*reply);
        end(id, answer);
      });
}

void PeerService::renewal(AcceptedId id, Open& open, peer::PeerRequest request) {
  if (coordinator_ == nullptr || !coordinator_->holding()) return send(id, not_coordinator(request.id()));
  if (const auto why = restrict_renewal(open.host_id, request.renewal()))
    return fail(id, request.id(), command::CODE_DENIED, *why);
  ++open.unanswered;
  coordinator_->renew(std::move(*request.mutable_renewal()), [this, alive = std::weak_ptr(alive_), id,
                                                              request_id = request.id()](peer::RenewalAnswer renewed) {
    if (alive.expired()) return;
    peer::PeerAnswer answer;
    answer.set_id(request_id);
    *answer.mutable_renewal() = std::move(renewed);
    end(id, answer);
  });
}

void PeerService::subscribe(AcceptedId id, Open& open, const peer::PeerRequest& request) {
  if (coordinator_ == nullptr || !coordinator_->holding()) return send(id, not_coordinator(request.id()));
  peer::PeerAnswer answer;
  answer.set_id(request.id());
  answer.mutable_failed()->set_code(command::CODE_OK);
  send(id, answer);
  // A host subscribes on its newest connection.
  for (auto& [other, there] : open_) {
    if (there.host_id == open.host_id) there.subscribed = false;
  }
  open.subscribed = true;
  coordinator_->subscribe(open.host_id);
}

AcceptedId PeerService::subscription_of(const std::string& host_id) const {
  for (const auto& [id, open] : open_) {
    if (open.subscribed && open.host_id == host_id) return id;
  }
  return 0;
}

void PeerService::unsubscribe(Open& open) {
  if (std::exchange(open.subscribed, false) && coordinator_ != nullptr) coordinator_->unsubscribe(open.host_id);
}

void PeerService::coordinator_lost() {
  for (auto& [id, open] : open_) {
    // Whoever gets no views from here any more is to know it, also if this host is elected again under the same term:
    // terms are a store's, and the store may have gone back in time.
    if (open.subscribed) {
      peer::PeerAnswer nobody;
      nobody.mutable_coordinator_is();
      send(id, nobody);
    }
    unsubscribe(open);
    // Their hosts ask the next coordinator.
    for (const auto& [request_id, client_gone] : std::exchange(open.forwards, {})) {
      client_gone();
      end(id, not_coordinator(request_id));
    }
  }
}

void PeerService::push_view(const std::string& host_id, const peer::HostView& view) {
  const AcceptedId id = subscription_of(host_id);
  if (id == 0) return;
  cut_view(view, [this, id](peer::HostView& part) {
    peer::PeerAnswer push;
    *push.mutable_view() = part;
    send(id, push);
  });
}

void PeerService::push_settled(const std::string& host_id, const lease::Settled& settled) {
  peer::PeerAnswer push;
  push.mutable_settled()->set_request_id(settled.request_id);
  *push.mutable_settled()->mutable_reply() = settled.reply;
  for (const auto& [id, open] : open_) {
    if (open.subscribed && (host_id.empty() || open.host_id == host_id)) send(id, push);
  }
}

void PeerService::tell_all() {
  peer::PeerAnswer push;
  *push.mutable_coordinator_is() = hooks_.who();
  for (const auto& [id, open] : open_) send(id, push);
}

// --- Clients of other hosts -------------------------------------------------------------------------------

void PeerService::forward(AcceptedId id, Open& open, const peer::PeerRequest& request) {
  if (coordinator_ == nullptr || !coordinator_->active()) return send(id, not_coordinator(request.id()));
  if (const auto why = restrict_forward(request.forward()))
    return fail(id, request.id(), command::CODE_BAD_REQUEST, *why);
  if (open.forwards.contains(request.id())) return transport_.drop(id);  // a peer that uses an id twice is broken
  ++open.unanswered;
  open.forwards.emplace(request.id(), [] {});
  ForwardedCall call;
  call.host_id = open.host_id;
  call.request = request.forward();
  call.answer = [this, alive = std::weak_ptr(alive_), id, request_id = request.id()](const std::string& frame,
                                                                                     bool more) {
    if (alive.expired()) return;
    const auto there = open_.find(id);
    if (there == open_.end() || !there->second.forwards.contains(request_id)) return;
    peer::PeerAnswer answer;
    answer.set_id(request_id);
    answer.set_server_frame(frame);
    answer.set_more(more);
    if (more) return send(id, answer);
    there->second.forwards.erase(request_id);
    end(id, answer);
  };
  auto client_gone = hooks_.forwarded(std::move(call));
  // It may be answered already.
  const auto there = open.forwards.find(request.id());
  if (there != open.forwards.end()) there->second = std::move(client_gone);
}

void PeerService::abandon(Open& open, std::uint64_t forward_id) {
  const auto found = open.forwards.extract(forward_id);
  if (found.empty()) return;
  --open.unanswered;
  found.mapped()();
}

// --- Between candidates -------------------------------------------------------------------------------------

void PeerService::candidate(AcceptedId id, const Open& open, const peer::PeerRequest& request) {
  if (request.has_gone_vote()) {
    if (coordinator_ != nullptr) coordinator_->election().vote(open.host_id, request.gone_vote());
    return;
  }
  if (coordinator_ == nullptr)
    return fail(id, request.id(), command::CODE_REFUSED, "this host has no member of the store");
  if (!coordinator_->election().told_to_stand(open.host_id, request.stand_now().term()))
    return fail(id, request.id(), command::CODE_REFUSED, "the asking host is not the coordinator of that term");
  peer::PeerAnswer answer;
  answer.set_id(request.id());
  answer.mutable_failed()->set_code(command::CODE_OK);
  send(id, answer);
}

// --- Out ------------------------------------------------------------------------------------------------------

void PeerService::end(AcceptedId id, const peer::PeerAnswer& answer) {
  const auto open = open_.find(id);
  if (open == open_.end()) return;
  --open->second.unanswered;
  send(id, answer);
}

void PeerService::send(AcceptedId id, const peer::PeerAnswer& answer) {
  std::string payload = answer.SerializeAsString();
  if (payload.size() > kFramePayloadMax) {
    peer::PeerAnswer failed;
    failed.set_id(answer.id());
    failed.mutable_failed()->set_code(command::CODE_INTERNAL);
    failed.mutable_failed()->set_message("the answer has " + std::to_string(payload.size()) +
                                         " bytes, more than one frame between hosts holds; ask for less");
    payload = failed.SerializeAsString();
  }
  // False: the connection is being cut off, and gone() follows.
  transport_.answer(id, std::move(payload));
}

void PeerService::fail(AcceptedId id, std::uint64_t request_id, command::Code code, const std::string& why) {
  peer::PeerAnswer answer;
  answer.set_id(request_id);
  answer.mutable_failed()->set_code(code);
  answer.mutable_failed()->set_message(why);
  send(id, answer);
}

peer::PeerAnswer PeerService::not_coordinator(std::uint64_t request_id) const {
  peer::PeerAnswer answer;
  answer.set_id(request_id);
  *answer.mutable_not_coordinator() = hooks_.who();
  return answer;
}

}  // namespace usblease::cluster
