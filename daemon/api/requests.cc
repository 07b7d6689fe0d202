#include "daemon/api/requests.h"

#include <algorithm>

#include "common/boottime.h"
#include "common/status_code.h"
#include "common/text.h"
#include "daemon/api/forwarding.h"
#include "daemon/host/explain.h"

namespace usblease::api {
namespace {

constexpr std::size_t kFollowersMax = 64;
constexpr std::size_t kDeferredMax = 1024;
constexpr std::uint64_t kDeferNs = 5ULL * 1'000'000'000;
constexpr std::uint64_t kDeferStatusNs = 3ULL * 1'000'000'000;  // it has an answer even without a coordinator
constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::size_t kEventsPerFrame = 256;
constexpr std::size_t kDevicesPerRequestMax = 16;
constexpr const char* kNoGuest = "00000000-0000-0000-0000-000000000000";  // a lock's holder is a command

const char* state_name(const lease::State& state, const record::Device& device) {
  if (device.has_lease()) {
    switch (device.lease().phase()) {
      case record::PHASE_REVOKING:
        return "revoking";
      case record::PHASE_FENCING:
        return "fencing";
      default:
        return "granted";
    }
  }
  switch (lease::availability(state, device)) {
    case lease::Availability::kAbsent:
      return "absent";
    case lease::Availability::kConflict:
      return "conflict";
    default:
      return "free";
  }
}

bool only_reads(const ClientFrame& frame) {
  switch (frame.body_case()) {
    case ClientFrame::kListDevices:
    case ClientFrame::kDeviceInfo:
    case ClientFrame::kQueue:
    case ClientFrame::kEvents:
    case ClientFrame::kHostInfo:
    case ClientFrame::kStatus:
    case ClientFrame::kListGuests:
    case ClientFrame::kClusterStatus:
      return true;
    default:
      return false;
  }
}

// Reads the state, or this host's view of it; what is submitted to the coordinator waits on its way there.
bool needs_coordinator(const ClientFrame& frame) {
  switch (frame.body_case()) {
    case ClientFrame::kListDevices:
    case ClientFrame::kDeviceInfo:
    case ClientFrame::kQueue:
    case ClientFrame::kEvents:
    case ClientFrame::kAssign:
    case ClientFrame::kDetach:
    case ClientFrame::kReleaseLease:
    case ClientFrame::kRevoke:
    case ClientFrame::kExtend:
      return true;
    case ClientFrame::kHookCall:
      return frame.hook_call().operation() == "start";  // asks whether a lease still stands
    default:
      return is_for_coordinator(frame);
  }
}

}  // namespace

void Requests::defer(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  if (deferred_.size() >= kDeferredMax)
    return responder.fail(command::CODE_UNAVAILABLE, "there is no coordinator now, and too many wait for one");
  const std::uint64_t id = next_deferred_++;
  SourceHandle timeout = run_after(frame.has_status() ? kDeferStatusNs : kDeferNs, [this, id] {
    const auto late = deferred_.extract(id);
    if (late.empty()) return;
    const Responder& waiting = late.mapped().responder;
    if (late.mapped().frame.has_status()) return status(waiting);
    waiting.fail(command::CODE_UNAVAILABLE,
                 "there is no coordinator now: " + router().trouble() + "; see `usblease status`");
  });
  deferred_.emplace(id, Deferred{caller, frame, responder, std::move(timeout)});
  responder.on_abandoned([this, id] { deferred_.erase(id); });
}

void Requests::on_ready() {
  for (auto& [id, waiting] : std::exchange(deferred_, {})) handle(waiting.caller, waiting.frame, waiting.responder);
}

void Requests::on_inactive() {
  for (auto& [id, follower] : std::exchange(followers_, {})) {
    // Those of other hosts are told by their own.
    if (follower.caller.host.empty()) handle(follower.caller, follower.frame, follower.responder);
  }
}

void Requests::handle(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  if (!caller.may_act && !only_reads(frame)) {
    return responder.fail(command::CODE_DENIED, "only root and the group " + context_.config.act_group +
                                                    " may do this; add the user to that group");
  }
  const bool waits = needs_coordinator(frame) || (frame.has_status() && context_.clustered);
  if (waits && !router().ready()) return defer(caller, frame, responder);
  if (asks_coordinator(frame) && router().ready() && !router().local())
    return ask_coordinator(caller, frame, responder);
  answer(caller, frame, responder);
}

std::function<void()> Requests::handle_forwarded(cluster::ForwardedCall call) {
  return serve_forwarded(
      std::move(call), [this](const Caller& caller, const ClientFrame& frame, const Responder& responder) {
        if (caller.may_act || only_reads(frame)) return answer(caller, frame, responder);
        responder.fail(command::CODE_DENIED, "another host passed on what its own rules do not allow");
      });
}

// The coordinator is on another host.
void Requests::ask_coordinator(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  // What was passed on already is not asked for again.
  const auto asked = std::make_shared<ClientFrame>(frame);
  const auto answered = [this, asked, responder](ServerFrame& reply) {
    if (reply.events().events_size() > 0)
      asked->mutable_events()->set_after_seq(reply.events().events(reply.events().events_size() - 1).seq());
    add_own_deadlines(reply);
    if (reply.more()) return responder.progress(std::move(reply));
    responder.finish(std::move(reply));
  };
  const auto lost = [this, caller, asked, responder] {
    if (!only_reads(*asked))
      return responder.fail(command::CODE_UNAVAILABLE,
                            "the coordinator went away before it answered; look whether it was done, and try again");
    // From the main loop: the router is just finding out that nobody is there.
    post([this, alive = std::weak_ptr(alive_), caller, asked, responder] {
      if (!alive.expired() && responder.is_open()) handle(caller, *asked, responder);
    });
  };
  const std::uint64_t id = forward(router(), caller, frame, answered, lost);
  if (id == 0) return responder.fail(command::CODE_UNAVAILABLE, "the way to the coordinator is full; try again");
  responder.on_abandoned([this, id] { router().abandon(id); });
}

void Requests::answer(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  switch (frame.body_case()) {
    case ClientFrame::kListDevices:
      return list_devices(responder);
    case ClientFrame::kDeviceInfo:
      return device_info(frame.device_info(), responder);
    case ClientFrame::kAttach:
      return attach(caller, frame.attach(), responder);
    case ClientFrame::kDetach:
      return detach(caller, frame.detach(), responder);
    case ClientFrame::kAssign:
      return assign(caller, frame, responder);
    case ClientFrame::kRevoke:
      return revoke(caller, frame, responder);
    case ClientFrame::kExtend:
      return extend(caller, frame, responder);
    case ClientFrame::kQueue:
      return queue(frame.queue(), responder);
    case ClientFrame::kEvents:
      return events(caller, frame, responder);
    case ClientFrame::kHostInfo:
      return host_info(responder);
    case ClientFrame::kStatus:
      return status(responder);
    case ClientFrame::kListGuests:
      return list_guests(responder);
    case ClientFrame::kAcquireLease:
      return acquire_lease(caller, frame.acquire_lease(), responder);
    case ClientFrame::kReleaseLease:
      return release_lease(caller, frame.release_lease(), responder);
    case ClientFrame::kLock:
      return lock(caller, frame.lock(), responder);
    case ClientFrame::kUnlock:
      return unlock(frame.unlock(), responder);
    case ClientFrame::kHookCall:
      return hook_call(caller, frame.hook_call(), responder);
    default:
      break;
  }
  if (admin_.handle(principal_of(caller), frame, responder)) return;
  responder.fail(command::CODE_BAD_REQUEST, "this version does not know that request");
}

std::string Requests::principal_of(const Caller& caller) const {
  return caller.name + "@" + (caller.host.empty() ? context_.agent.self().id() : caller.host);
}

const lease::State* Requests::state_or_fail(const Responder& responder) const {
  const cluster::Coordinator* coordinator = context_.node.coordinator();
  const lease::State* state = coordinator != nullptr ? coordinator->state() : nullptr;
  if (state == nullptr)
    responder.fail(command::CODE_UNAVAILABLE,
                   "there is no coordinator now: " + router().trouble() + "; see `usblease status`");
  return state;
}

void Requests::with_device(const std::string& device, const Responder& responder,
                           std::function<void(const record::Device*)> found, std::function<void()> again) {
  if (router().local()) {
    const lease::State* state = state_or_fail(responder);
    if (state == nullptr) return;
    const auto record = state->devices.find(device);
    return found(record == state->devices.end() ? nullptr : &record->second);
  }
  ClientFrame frame;
  frame.mutable_device_info()->set_device(device);
  Caller self;
  self.name = "usbleased";
  const auto answered = [responder, found = std::move(found)](ServerFrame& reply) {
    if (reply.status().code() == command::CODE_OK) return found(&reply.device_info().device().device());
    if (reply.status().code() == command::CODE_NOT_FOUND) return found(nullptr);
    responder.fail(reply.status().code(), reply.status().message());
  };
  const auto lost = [this, responder, again = std::move(again)] {
    post([alive = std::weak_ptr(alive_), responder, again] {
      if (!alive.expired() && responder.is_open()) again();
    });
  };
  if (forward(router(), self, frame, answered, lost) == 0)
    responder.fail(command::CODE_UNAVAILABLE, "the way to the coordinator is full; try again");
}

// --- Looking ---------------------------------------------------------------------------------------------

// Deadlines are instants of this host's clock, so another host's say nothing here.
void Requests::add_own_deadlines(ServerFrame& frame) const {
  const auto own = [this](DeviceView& view) {
    const record::Device& device = view.device();
    view.set_deadline_boottime_ns(device.has_lease() ? context_.agent.deadline_ns(device.name(), device.lease().token())
                                                     : 0);
  };
  if (frame.has_list_devices()) {
    for (DeviceView& view : *frame.mutable_list_devices()->mutable_devices()) own(view);
  } else if (frame.has_device_info()) {
    own(*frame.mutable_device_info()->mutable_device());
  }
}

DeviceView Requests::view_of(const record::Device& device, std::size_t queue_length) const {
  const lease::State& state = *context_.node.coordinator()->state();
  DeviceView view;
  *view.mutable_device() = device;
  view.set_queue_length(static_cast<std::uint32_t>(queue_length));
  view.set_state(state_name(state, device));
  view.set_isolation_ms(std::max(device.policy().isolation_ms(), context_.config.ttl_ms));
  if (device.has_lease())
    view.set_deadline_boottime_ns(context_.agent.deadline_ns(device.name(), device.lease().token()));
  return view;
}

void Requests::list_devices(const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  ServerFrame frame = ok_frame();
  const std::map<std::string, std::size_t> queues = lease::queue_lengths(*state);
  for (const auto& [name, device] : state->devices) {
    // A record without home and lease only keeps the order of tokens.
    if (device.homes().empty() && !device.has_lease()) continue;
    const auto queue = queues.find(name);
    *frame.mutable_list_devices()->add_devices() = view_of(device, queue == queues.end() ? 0 : queue->second);
  }
  frame.mutable_list_devices();
  responder.finish(std::move(frame));
}

void Requests::device_info(const DeviceInfo& request, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  const auto found = state->devices.find(request.device());
  if (found == state->devices.end()) {
    return responder.fail(command::CODE_NOT_FOUND, "there is no device " + escape_text(request.device().substr(0, 64)) +
                                                       "; `usblease list` shows what there is");
  }
  ServerFrame frame = ok_frame();
  const auto queue = lease::queue_of(*state, request.device());
  *frame.mutable_device_info()->mutable_device() = view_of(found->second, queue.size());
  for (const record::Request* waiting : queue) *frame.mutable_device_info()->add_queue() = *waiting;
  responder.finish(std::move(frame));
}

void Requests::queue(const Queue& request, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  if (!state->devices.contains(request.device())) {
    return responder.fail(command::CODE_NOT_FOUND, "there is no device " + escape_text(request.device().substr(0, 64)) +
                                                       "; `usblease list` shows what there is");
  }
  ServerFrame frame = ok_frame();
  frame.mutable_queue();
  for (const record::Request* waiting : lease::queue_of(*state, request.device()))
    *frame.mutable_queue()->add_requests() = *waiting;
  responder.finish(std::move(frame));
}

void Requests::events(const Caller& caller, const ClientFrame& request, const Responder& responder) {
  const lease::State* state = state_or_fail(responder);
  if (state == nullptr) return;
  auto at = state->events.upper_bound(request.events().after_seq());
  auto left = static_cast<std::size_t>(std::distance(at, state->events.end()));
  const std::size_t limit = request.events().limit();
  for (; limit != 0 && left > limit; --left) ++at;
  ServerFrame frame = ok_frame();
  frame.mutable_events();
  std::uint64_t last_seq = state->next_seq() - 1;
  for (; at != state->events.end(); ++at) {
    *frame.mutable_events()->add_events() = at->second;
    if (frame.events().events_size() == kEventsPerFrame) {
      responder.progress(std::exchange(frame, ok_frame()));
      frame.mutable_events();
    }
  }
  if (!request.events().follow()) return responder.finish(std::move(frame));
  if (followers_.size() >= kFollowersMax)
    return responder.fail(command::CODE_UNAVAILABLE, "64 clients follow the events already");
  responder.progress(std::move(frame));
  const std::uint64_t id = next_follower_++;
  Follower& follower = followers_.emplace(id, Follower{caller, request, responder}).first->second;
  follower.frame.mutable_events()->set_after_seq(last_seq);
  responder.on_abandoned([this, id] { followers_.erase(id); });
}

void Requests::on_event(const record::Event& event) {
  ServerFrame frame = ok_frame();
  *frame.mutable_events()->add_events() = event;
  std::vector<Responder> responders;
  for (auto& [id, follower] : followers_) {
    if (event.seq() <= follower.frame.events().after_seq()) continue;
    follower.frame.mutable_events()->set_after_seq(event.seq());
    responders.push_back(follower.responder);
  }
  for (const Responder& responder : responders) responder.progress(frame);
}

void Requests::host_info(const Responder& responder) {
  ServerFrame frame = ok_frame();
  HostInfoReply& info = *frame.mutable_host_info();
  *info.mutable_host() = context_.agent.self();
  info.set_libvirt_connected(context_.agent.hypervisor().is_connected());
  info.set_libvirt_detail(context_.agent.hypervisor().describe());
  info.set_relays(static_cast<std::uint32_t>(context_.agent.relays()));
  info.set_boottime_ns(boottime_now_ns());
  const host::RungFacts facts{context_.agent.hypervisor().is_connected(), context_.agent.page_trouble()};
  for (const auto& rung : host::report_rungs(context_.config, facts)) *info.add_rungs() = rung;
  responder.finish(std::move(frame));
}

void Requests::status(const Responder& responder) {
  ServerFrame frame = ok_frame();
  StatusReply& reply = *frame.mutable_status_reply();
  reply.set_cluster_id(context_.cluster_id);
  reply.set_version(context_.version);
  reply.set_ttl_ms(context_.config.ttl_ms);
  const cluster::Coordinator* coordinator = context_.node.coordinator();
  if (context_.store == nullptr) {
    reply.set_store_health("this host has no member of the store; " + router().trouble());
    return responder.finish(std::move(frame));
  }
  reply.set_store(context_.store->describe());
  reply.set_store_revision(coordinator->revision());
  const store::Health health = context_.store->health();
  const std::string& trouble = coordinator->trouble();
  reply.set_store_health(!health.ok ? health.message : trouble.empty() ? "ok" : trouble);
  if (const lease::State* state = coordinator->state(); state != nullptr) {
    reply.set_coordinator(context_.agent.self().id());
    reply.set_term(coordinator->term());
    add_counts(*state, reply);
    const std::uint64_t now_ns = boottime_now_ns();
    for (const auto& [id, host] : state->hosts) {
      SessionStatus& session = *reply.add_sessions();
      session.set_host_id(id);
      session.set_gone(host.gone());
      const auto answered_ns = coordinator->answered_ns(host);
      session.set_answered(answered_ns.has_value());
      if (answered_ns) session.set_answered_ms_ago((now_ns - *answered_ns) / kNsPerMs);
    }
  }
  responder.finish(std::move(frame));
}

void Requests::list_guests(const Responder& responder) {
  context_.agent.hypervisor().list_guests([responder](const Result<std::vector<host::Guest>>& guests) {
    if (!guests) return responder.fail(code_of(guests.error().code), guests.error().message);
    ServerFrame frame = ok_frame();
    frame.mutable_list_guests();
    for (const host::Guest& guest : *guests) frame.mutable_list_guests()->add_names(guest.name);
    responder.finish(std::move(frame));
  });
}

// --- Acting ----------------------------------------------------------------------------------------------

void Requests::attach(const Caller& caller, const Attach& request, const Responder& responder) {
  if (!is_identifier(request.request_id()))
    return responder.fail(command::CODE_BAD_REQUEST, "request_id: 1 to 64 of A-Z a-z 0-9 . _ - are needed");
  if (request.devices().empty() || request.devices_size() > static_cast<int>(kDevicesPerRequestMax))
    return responder.fail(command::CODE_BAD_REQUEST, "1 to 16 devices are needed");
  if (request.guest().empty() || request.guest().size() > 255)
    return responder.fail(command::CODE_BAD_REQUEST, "a guest's name or UUID is needed");
  responder.on_abandoned([this, id = request.request_id()] { context_.agent.abandon_attach(id); });
  const auto waiting = [responder](const command::Reply& reply) {
    ServerFrame frame = ok_frame();
    frame.mutable_attach_progress()->set_stage("queued");
    *frame.mutable_attach_progress()->mutable_obstacles() = reply.obstacles();
    responder.progress(std::move(frame));
  };
  context_.agent.attach(request, principal_of(caller), waiting, [responder](const Result<command::Reply>& reply) {
    if (!reply) return responder.fail(code_of(reply.error().code), reply.error().message);
    ServerFrame frame = ok_frame();
    *frame.mutable_attach()->mutable_grants() = reply->grants();
    responder.finish(std::move(frame));
  });
}

void Requests::detach(const Caller& caller, const Detach& request, const Responder& responder) {
  context_.agent.detach(request.guest(), request.device(), principal_of(caller),
                        [responder](const Result<std::uint64_t>& token) {
                          if (!token) return responder.fail(code_of(token.error().code), token.error().message);
                          ServerFrame frame = ok_frame();
                          frame.mutable_detach()->set_token(*token);
                          responder.finish(std::move(frame));
                        });
}

void Requests::assign(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  const Assign& request = frame.assign();
  if (!is_device_name(request.device()))
    return responder.fail(command::CODE_BAD_REQUEST,
                          "\"" + escape_text(request.device().substr(0, 64)) + "\" is not a device name");
  if (request.remove()) return assign_known(request, responder);
  with_device(
      request.device(), responder,
      [this, request, responder](const record::Device* device) {
        if (device != nullptr) return assign_known(request, responder);
        responder.fail(command::CODE_NOT_FOUND,
                       "there is no device " + request.device() + "; `usblease list` shows what there is");
      },
      [this, caller, frame, responder] { handle(caller, frame, responder); });
}

void Requests::assign_known(const Assign& request, const Responder& responder) {
  context_.agent.hypervisor().find_guest(request.guest(), [this, request, responder](const Result<host::Guest>& guest) {
    if (!guest) return responder.fail(code_of(guest.error().code), guest.error().message);
    Assignment assignment;
    assignment.device = request.device();
    assignment.required = request.required();
    assignment.wait_s = request.wait_s();
    context_.agent.hypervisor().assign(
        guest->uuid, assignment, request.remove(), [responder, running = guest->running](const Result<bool>& changed) {
          if (!changed) return responder.fail(code_of(changed.error().code), changed.error().message);
          ServerFrame frame = ok_frame();
          frame.mutable_assign()->set_changed(*changed);
          frame.mutable_assign()->set_running(running);
          responder.finish(std::move(frame));
        });
  });
}

// Named by its token, so that a repeat after a lost answer can never end the next guest's lease.
void Requests::revoke(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  const auto found = [this, caller, request = frame.revoke(), responder](const record::Device* device) {
    if (device == nullptr)
      return responder.fail(command::CODE_NOT_FOUND, "there is no device " + escape_text(request.device()));
    if (!device->has_lease())
      return responder.fail(command::CODE_NOT_FOUND, request.device() + " is not leased: there is nothing to revoke");
    command::Command command;
    command::Revoke& c = *command.mutable_revoke();
    c.set_device(request.device());
    c.set_token(device->lease().token());
    c.set_grace_ms(request.grace_ms());
    c.set_reason(request.reason());
    c.set_principal(principal_of(caller));
    router().submit(std::move(command), [responder](const command::Reply& reply) {
      if (reply.status().code() != command::CODE_OK)
        return responder.fail(reply.status().code(), reply.status().message());
      ServerFrame done = ok_frame();
      done.mutable_revoke()->set_token(reply.token());
      responder.finish(std::move(done));
    });
  };
  with_device(frame.revoke().device(), responder, found,
              [this, caller, frame, responder] { handle(caller, frame, responder); });
}

void Requests::extend(const Caller& caller, const ClientFrame& frame, const Responder& responder) {
  const auto found = [this, caller, request = frame.extend(), responder](const record::Device* device) {
    if (device == nullptr)
      return responder.fail(command::CODE_NOT_FOUND, "there is no device " + escape_text(request.device()));
    if (!device->has_lease())
      return responder.fail(command::CODE_NOT_FOUND, request.device() + " has no such lease to extend");
    command::Command command;
    command::Extend& c = *command.mutable_extend();
    c.set_device(request.device());
    c.set_token(device->lease().token());
    c.set_duration_s(request.duration_s());
    c.set_principal(principal_of(caller));
    router().submit(std::move(command), [responder](const command::Reply& reply) {
      if (reply.status().code() != command::CODE_OK)
        return responder.fail(reply.status().code(), reply.status().message());
      ServerFrame done = ok_frame();
      done.mutable_extend()->set_token(reply.token());
      responder.finish(std::move(done));
    });
  };
  with_device(frame.extend().device(), responder, found,
              [this, caller, frame, responder] { handle(caller, frame, responder); });
}

record::Start Requests::bare_start(const std::string& guest_uuid, const std::string& nonce) const {
  record::Start start;
  start.set_guest_uuid(guest_uuid);
  start.set_nonce(nonce);
  start.set_host_id(context_.agent.self().id());
  start.set_boot_id(context_.agent.self().boot_id());
  start.set_domain_id(-1);
  return start;
}

void Requests::acquire_lease(const Caller& caller, const AcquireLease& request, const Responder& responder) {
  command::Acquire acquire;
  acquire.set_request_id(request.request_id());
  *acquire.mutable_start() = bare_start(request.guest_uuid(), request.nonce());
  acquire.set_guest_name(request.guest_name());
  *acquire.mutable_devices() = request.devices();
  acquire.set_wait_ms(request.wait_ms());
  acquire.set_duration_s(request.duration_s());
  acquire.set_priority(request.priority());
  acquire.set_principal(principal_of(caller));
  responder.on_abandoned(
      [this, id = request.request_id()] { context_.agent.acquisitions().abandon(id, "the client went away"); });
  context_.agent.acquisitions().acquire(
      std::move(acquire), nullptr, [responder, guest = request.guest_name()](const command::Reply& reply) {
        if (reply.status().code() != command::CODE_OK)
          return responder.fail(reply.status().code(), host::explain(reply, guest, host::Asked::kWhileRunning));
        ServerFrame frame = ok_frame();
        *frame.mutable_acquire_lease()->mutable_grants() = reply.grants();
        responder.finish(std::move(frame));
      });
}

void Requests::release_lease(const Caller& caller, const ReleaseLease& request, const Responder& responder) {
  command::Command command;
  command::Release& c = *command.mutable_release();
  *c.mutable_start() = bare_start(request.guest_uuid(), request.nonce());
  *c.mutable_devices() = request.devices();
  c.set_reason("released");
  c.set_principal(principal_of(caller));
  // The tokens that the caller holds now: what "free again" is about.
  std::vector<std::pair<std::string, std::uint64_t>> held;
  if (request.wait_fenced()) held = context_.agent.held_by(c.start(), {c.devices().begin(), c.devices().end()});
  router().submit(std::move(command), [this, responder, held](const command::Reply& reply) {
    if (reply.status().code() != command::CODE_OK)
      return responder.fail(reply.status().code(), reply.status().message());
    auto left = std::make_shared<std::size_t>(held.size());
    ServerFrame frame = ok_frame();
    frame.mutable_release_lease();
    if (held.empty()) return responder.finish(std::move(frame));
    for (const auto& [device, token] : held) {
      context_.agent.when_free(device, token, [left, responder, frame, device = device](bool free) {
        if (!free) {
          std::string why = device;
          why.append(" is not confirmed fenced yet; see `usblease info ").append(device).append("`");
          return responder.fail(command::CODE_TIMED_OUT, std::move(why));
        }
        if (--*left == 0) responder.finish(frame);
      });
    }
  });
}

// Answered when it is held no longer: by then the client has ended what ran under it, or is just doing so.
void Requests::lock(const Caller& caller, const Lock& request, const Responder& responder) {
  const std::string name = std::string(kLockPrefix) + request.name();
  if (!is_identifier(request.request_id()) || !is_lock_name(name))
    return responder.fail(command::CODE_BAD_REQUEST, "a lock needs a request_id, and a name of 1 to 48 of a-z 0-9 _ -");
  command::Acquire acquire;
  acquire.set_request_id(request.request_id());
  *acquire.mutable_start() = bare_start(kNoGuest, request.nonce());
  acquire.set_guest_name(request.holder());
  acquire.add_devices(name);
  acquire.set_wait_ms(request.wait_ms());
  acquire.set_priority(request.priority());
  acquire.set_principal(principal_of(caller));
  host::LockClient client;
  client.waiting = [responder](const command::Reply& reply) {
    ServerFrame frame = ok_frame();
    *frame.mutable_lock_progress()->mutable_obstacles() = reply.obstacles();
    responder.progress(std::move(frame));
  };
  client.held = [responder](std::uint64_t token, std::uint64_t deadline_ns) {
    ServerFrame frame = ok_frame();
    frame.mutable_lock_progress()->set_token(token);
    frame.mutable_lock_progress()->set_deadline_boottime_ns(deadline_ns);
    responder.progress(std::move(frame));
  };
  client.ended = [responder](command::Code code, const std::string& message) {
    if (code != command::CODE_OK) return responder.fail(code, message);
    ServerFrame frame = ok_frame();
    frame.mutable_lock();
    responder.finish(std::move(frame));
  };
  const std::uint64_t number = context_.agent.locks().lock(acquire, std::move(client));
  responder.on_abandoned([this, id = request.request_id(), number] { context_.agent.locks().abandon(id, number); });
}

void Requests::unlock(const Unlock& request, const Responder& responder) {
  context_.agent.locks().unlock(request.request_id(), [responder](const Result<void>& done) {
    if (!done) return responder.fail(code_of(done.error().code), done.error().message);
    ServerFrame frame = ok_frame();
    frame.mutable_unlock();
    responder.finish(std::move(frame));
  });
}

void Requests::hook_call(const Caller& caller, const HookCall& request, const Responder& responder) {
  // What a hook says of guests is believed, so only root may say it: libvirtd runs its hooks as root.
  if (caller.uid != 0) return responder.fail(command::CODE_DENIED, "only root may speak for libvirt's hook");
  const bool sound = parse_uuid(request.guest_uuid()).has_value() && request.guest_name().size() <= 255 &&
                     request.devices_size() <= 16;
  if (!sound) return responder.fail(command::CODE_BAD_REQUEST, "the hook's call names no sound guest");
  for (const Declared& declared : request.devices()) {
    if (!is_device_name(declared.device()))
      return responder.fail(command::CODE_BAD_REQUEST,
                            "\"" + escape_text(declared.device().substr(0, 64)) + "\" is not a device name");
  }
  responder.on_abandoned([this, request] { context_.agent.hook_calls().abandon(request); });
  context_.agent.hook_calls().handle(request, principal_of(caller),
                                     [responder](command::Code code, const std::string& message) {
                                       if (code != command::CODE_OK) return responder.fail(code, message);
                                       ServerFrame frame = ok_frame();
                                       frame.mutable_hook();
                                       responder.finish(std::move(frame));
                                     });
}

}  // namespace usblease::api
