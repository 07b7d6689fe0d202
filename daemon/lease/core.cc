#include "daemon/lease/core.h"

#include <algorithm>

#include "daemon/lease/fields.h"
#include "daemon/lease/step.h"
#include "daemon/lease/validate.h"

namespace usblease::lease {

bool same_start(const record::Start& a, const record::Start& b) {
  return a.guest_uuid() == b.guest_uuid() && a.nonce() == b.nonce() && a.host_id() == b.host_id() &&
         a.boot_id() == b.boot_id();
}

bool same_instance(const record::Instance& a, const record::Instance& b) {
  return a.host_id() == b.host_id() && a.boot_id() == b.boot_id() && a.counter() == b.counter();
}

const record::Host* live_host(const State& state, const std::string& host_id, const std::string& boot_id) {
  const auto found = state.hosts.find(host_id);
  if (found == state.hosts.end() || found->second.gone() || found->second.boot_id() != boot_id) return nullptr;
  return &found->second;
}

std::vector<const record::Presence*> claims(const State& state, const record::Device& device) {
  std::vector<const record::Presence*> out;
  for (const auto& home : device.homes()) {
    if (home.present() && live_host(state, home.instance().host_id(), home.instance().boot_id()) != nullptr)
      out.push_back(&home);
  }
  return out;
}

bool is_barred(const record::Host& host, const std::string& boot_id) {
  const auto& barred = host.barred_boot_ids();
  return std::find(barred.begin(), barred.end(), boot_id) != barred.end();
}

std::uint64_t epoch_of(std::uint64_t token) { return token >> kTokenCounterBits; }

void Step::run(const command::Command& c) {
  using Body = command::Command::BodyCase;
  decision_.reply.mutable_status()->set_code(command::CODE_OK);
  switch (c.body_case()) {
    case Body::kRegisterHost:
      return register_host(c.register_host());
    case Body::kReportDevice:
      return report_device(c.report_device());
    case Body::kForgetDevice:
      return forget_device(c.forget_device());
    case Body::kAcquire:
      return acquire(c.acquire());
    case Body::kCancelRequest:
      return cancel_request(c.cancel_request());
    case Body::kRelease:
      return release(c.release());
    case Body::kRevoke:
      return revoke(c.revoke());
    case Body::kGraceOver:
      return grace_over(c.grace_over());
    case Body::kUntilOver:
      return until_over(c.until_over());
    case Body::kExtend:
      return extend(c.extend());
    case Body::kConfirmFenced:
      return confirm_fenced(c.confirm_fenced());
    case Body::kHostGone:
      return host_gone(c.host_gone());
    case Body::kDeclareDead:
      return declare_dead(c.declare_dead());
    case Body::kNewEpoch:
      return new_epoch(c.new_epoch());
    case Body::kFoundCluster:
      return found_cluster(c.found_cluster());
    case Body::kAddHost:
      return add_host(c.add_host());
    case Body::kJoin:
      return join(c.join());
    case Body::kUpdateMember:
      return update_member(c.update_member());
    case Body::kRemoveHost:
      return remove_host(c.remove_host());
    case Body::kDrainHost:
      return drain_host(c.drain_host());
    case Body::kRestore:
      return restore(c.restore());
    case Body::kRotateCertificates:
      return rotate_certificates(c.rotate_certificates());
    case Body::kNoteCertificate:
      return note_certificate(c.note_certificate());
    case Body::kNoteRefusals:
      return note_refusals(c.note_refusals());
    case Body::BODY_NOT_SET:
      return refuse(command::CODE_BAD_REQUEST, "an empty command");
  }
}

Decision Step::finish() {
  if (look_for_leavers_) finish_leaving();
  for (const std::string& key : dirty_) decision_.changes.push_back(encode_key(state_, key));
  return std::move(decision_);
}

void Step::refuse(command::Code code, const std::string& message) {
  decision_.reply.mutable_status()->set_code(code);
  decision_.reply.mutable_status()->set_message(message);
}

void Step::event(record::Event event) {
  event.set_seq(state_.next_seq());
  event.set_unix_s(context_.now_unix_s);
  event.set_text(cut_text(event.text(), kEventTextBytesMax));
  dirty_.insert(event_key(event.seq()));
  decision_.events.push_back(event);
  const std::uint64_t seq = event.seq();
  state_.events.emplace(seq, std::move(event));
  while (state_.events.size() > kEventsMax) {
    dirty_.insert(event_key(state_.events.begin()->first));
    state_.events.erase(state_.events.begin());
  }
}

void Step::event(const std::string& kind, const record::Device& device, const std::string& principal,
                 const std::string& text) {
  record::Event e;
  e.set_kind(kind);
  e.set_device(device.name());
  if (device.has_lease()) {
    e.set_guest(device.lease().guest_name());
    e.set_guest_uuid(device.lease().start().guest_uuid());
    e.set_host(device.lease().start().host_id());
    e.set_token(device.lease().token());
  }
  e.set_principal(principal);
  e.set_text(text);
  event(std::move(e));
}

void Step::event(const std::string& kind, const record::Request& request, const std::string& text) {
  record::Event e;
  e.set_kind(kind);
  e.set_device(request.devices(0));
  e.set_guest(request.guest_name());
  e.set_guest_uuid(request.start().guest_uuid());
  e.set_host(request.start().host_id());
  e.set_principal(request.principal());
  e.set_text(text);
  event(std::move(e));
}

record::Device* Step::find(const std::string& device) {
  const auto found = state_.devices.find(device);
  return found == state_.devices.end() ? nullptr : &found->second;
}

bool Step::has_lease(const record::Device& device, std::uint64_t token) const {
  return device.has_lease() && device.lease().token() == token;
}

Core::Core(State state, const std::set<std::string>& heard) : Core(std::move(state)) {
  for (const auto& [id, host] : state_.hosts) {
    if (!heard.contains(id)) state_.unheard.insert(id);
  }
}

Decision Core::apply(const command::Command& command, const Context& context) {
  if (const auto valid = validate(command); !valid) {
    Decision refused;
    refused.reply.mutable_status()->set_code(command::CODE_BAD_REQUEST);
    refused.reply.mutable_status()->set_message(valid.error().message);
    return refused;
  }
  Step step(state_, context, *versions_);
  step.run(command);
  return step.finish();
}

}  // namespace usblease::lease
