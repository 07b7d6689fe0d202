#include "daemon/cluster/node.h"

#include <utility>

namespace usblease::cluster {

Node::Node(store::Store* store, const CoordinatorOptions& options, NodeEvents events)
    : host_id_(options.host_id),
      events_(std::move(events)),
      candidates_({options.host_id}),
      router_(options.host_id, events_.router) {
  if (store == nullptr) return;
  coordinator_ = std::make_unique<Coordinator>(*store, options, coordinator_events());
  coordinator_->subscribe(host_id_);
  router_.set_local(coordinator_.get());
}

Node::~Node() = default;

CoordinatorEvents Node::coordinator_events() {
  CoordinatorEvents events;
  events.active = [this](bool active) {
    if (!active && service_) service_->coordinator_lost();
    router_.local_active(active);
    if (events_.active) events_.active(active);
  };
  events.loaded = [this] {
    if (events_.loaded) events_.loaded();
  };
  events.view = [this](const std::string& host_id, const peer::HostView& view) {
    if (host_id == host_id_) return router_.local_view(view);
    if (service_) service_->push_view(host_id, view);
  };
  events.event = [this](const record::Event& event) {
    if (events_.event) events_.event(event);
  };
  events.settled = [this](const std::string& host_id, const lease::Settled& settled) {
    if (host_id.empty() || host_id == host_id_) router_.local_settled(settled.request_id, settled.reply);
    if (host_id != host_id_ && service_) service_->push_settled(host_id, settled);
  };
  events.holder = [this](const std::string& host_id, std::uint64_t term) {
    vote_.reset();
    // Also one that never became active had subscribers.
    if (host_id != host_id_ && service_) service_->coordinator_lost();
    router_.store_shows(host_id, term);
    if (service_) service_->tell_all();
  };
  events.tell_candidates = [this](const peer::GoneVote& vote) { tell_candidates(vote); };
  return events;
}

TransportEvents Node::transport_events() {
  TransportEvents events;
  events.up = [this](const std::string& host_id) { on_up(host_id); };
  events.down = [this](const std::string& host_id, DownReason reason, const std::string& /*logged there*/) {
    on_down(host_id, reason);
  };
  events.answer = [this](const std::string& host_id, const std::string& payload) { calls_->answer(host_id, payload); };
  events.accepted = [this](AcceptedId id, const std::string& host_id) { service_->accepted(id, host_id); };
  events.request = [this](AcceptedId id, const std::string& payload) { service_->request(id, payload); };
  events.gone = [this](AcceptedId id) { service_->gone(id); };
  return events;
}

void Node::use(Transport& transport, PeerServiceHooks hooks) {
  calls_ = std::make_unique<PeerCalls>(
      transport, [this](const std::string& host_id, const peer::PeerAnswer& push) { router_.pushed(host_id, push); });
  if (!hooks.who) hooks.who = [this] { return who(); };
  service_ = std::make_unique<PeerService>(transport, coordinator_.get(), std::move(hooks));
  router_.set_calls(calls_.get());
  transport_ = &transport;
}

// Of itself it says only what is so now.
peer::CoordinatorIs Node::who() const {
  const peer::CoordinatorIs& known = router_.coordinator();
  const bool was = known.host_id() == host_id_ && (!coordinator_ || !coordinator_->holding());
  return was ? peer::CoordinatorIs() : known;
}

void Node::set_members(const Members& members) {
  const std::vector<std::string> candidates = members.candidates();
  candidates_ = {candidates.begin(), candidates.end()};
  if (coordinator_) coordinator_->election().set_candidates(candidates_);
  if (transport_ == nullptr) return;
  std::vector<Peer> peers;
  for (const Member& member : members.hosts) {
    if (member.candidate && member.host_id != host_id_) peers.push_back({member.host_id, member.addresses});
  }
  transport_->set_peers(std::move(peers));
}

void Node::start() {
  if (coordinator_) coordinator_->start();
}

void Node::on_up(const std::string& host_id) {
  calls_->up(host_id);
  if (coordinator_) coordinator_->election().connection_up(host_id);
  if (vote_ && candidates_.contains(host_id)) {
    peer::PeerRequest request;
    *request.mutable_gone_vote() = *vote_;
    calls_->tell(host_id, std::move(request));
  }
  router_.peer_up(host_id);
}

void Node::on_down(const std::string& host_id, DownReason reason) {
  calls_->down(host_id);
  router_.peer_down(host_id);
  if (coordinator_) coordinator_->election().connection_down(host_id, reason);
}

void Node::tell_candidates(const peer::GoneVote& vote) {
  vote_ = vote;
  if (!calls_) return;
  for (const std::string& host_id : candidates_) {
    if (host_id == host_id_ || host_id == vote.host_id()) continue;
    peer::PeerRequest request;
    *request.mutable_gone_vote() = vote;
    calls_->tell(host_id, std::move(request));
  }
}

void Node::transfer(const std::string& to_host_id, const std::function<void(Result<void>)>& done) {
  if (!coordinator_ || !coordinator_->active())
    return done(fail(ErrorCode::kRefused, "this host is not the coordinator; see `usblease status`"));
  if (to_host_id == host_id_) return done({});
  if (!candidates_.contains(to_host_id))
    return done(
        fail(ErrorCode::kRefused, "host " + to_host_id + " has no member of the store, so it cannot take over"));
  peer::PeerRequest request;
  request.mutable_stand_now()->set_term(coordinator_->term());
  const auto unreachable = [to_host_id] {
    return fail(ErrorCode::kUnavailable, "host " + to_host_id + " cannot be reached from the coordinator");
  };
  if (!calls_) return done(unreachable());
  const auto asked = calls_->ask(to_host_id, std::move(request), [done, unreachable](const peer::PeerAnswer* answer) {
    if (answer == nullptr) return done(unreachable());
    if (answer->failed().code() == command::CODE_OK) return done({});
    done(fail(ErrorCode::kUnavailable, answer->failed().message()));
  });
  if (!asked) return done(unreachable());
  coordinator_->stand_down();
}

}  // namespace usblease::cluster
