#include "daemon/host/endpoint_home.h"

#include <algorithm>

#include "common/boottime.h"
#include "common/log.h"
#include "common/mutant.h"
#include "daemon/host/starts.h"

namespace usblease::host {
namespace {

constexpr std::uint32_t kConnectTimeoutMs = 3'000;
constexpr std::uint32_t kProbeTimeoutMs = 3'000;
constexpr std::uint32_t kProbeDelayMinMs = 200;
constexpr std::uint32_t kProbeDelayMaxMs = 5'000;
const char* ending_text(relay::Ending ending) {
  switch (ending) {
    case relay::ENDING_DEADLINE:
      return "the deadline passed without a renewal";
    case relay::ENDING_REVOKED:
      return "revoked";
    case relay::ENDING_GUEST_CLOSED:
      return "the guest gave it back";
    case relay::ENDING_ENDPOINT_CLOSED:
      return "the endpoint closed the stream: unplugged";
    case relay::ENDING_GUEST_PROTOCOL:
      return "the guest's QEMU sent what is not usbredir";
    case relay::ENDING_ENDPOINT_PROTOCOL:
      return "the endpoint sent what is not usbredir";
    default:
      return "the relay failed";
  }
}

}  // namespace

EndpointHome::EndpointHome(DeviceConfig config, HomeContext& context, HomeRole role)
    : DeviceHome(std::move(config), context, role) {}

// --- Is it there? ------------------------------------------------------------------------------------

void EndpointHome::report() {
  if (retired_) return;
  const home::Floor floor = context_.home_file.floor(config_.name);
  if (instance_.counter() == 0 && floor.instance() != 0 && floor.boot_id() == context_.session.self().boot_id()) {
    // The same boot of the same home: a restart of the daemon does not end an instance.
    adopt_instance(floor.instance());
  }
  if (relay_token_ != 0) known_ = Known::kPresent;  // a stream runs: no need to ask, and no way
  if (known_ == Known::kUnknown) {
    // To look may take seconds. A device that has no record yet gets one now, so that it can be named and waited for.
    if (record_.name().empty()) {
      detail_ = "its home has not looked yet";
      send_report();
    }
    return probe();
  }
  send_report();
  try_early();
}

void EndpointHome::probe() {
  if (probing_ || arming_ || !context_.adopted) return;
  if (config_.endpoint.empty()) {
    return log::error("nobody knows where to see the end of this stream: put the device back into the configuration",
                      {{"DEVICE", config_.name}, {"TOKEN", std::to_string(evidence_wanted_)}});
  }
  // The endpoint serves one stream at a time, so while a relay of ours is there a probe could only wait and fail.
  if (context_.relays.has_any(config_.name)) {
    if (known_ != Known::kPresent || evidence_wanted_ != 0) schedule_probe();
    return;
  }
  const std::uint64_t generation = ++probe_generation_;
  probing_ = probe_endpoint(config_.endpoint, kProbeTimeoutMs,
                            [this, generation, alive = std::weak_ptr(alive_)](const Result<EndpointDevice>& seen) {
                              if (alive.expired()) return;
                              // Not from inside of the call's own callback.
                              post([this, alive, seen, generation] {
                                if (alive.expired() || generation != probe_generation_) return;
                                probing_.reset();
                                probed(seen);
                              });
                            });
}

void EndpointHome::probed(const Result<EndpointDevice>& seen) {
  if (!seen) {
    set_known(Known::kAbsent, seen.error().message);
    return schedule_probe();
  }
  seen_ = *seen;
  probe_delay_ms_ = 0;
  if (evidence_wanted_ != 0) {
    // The endpoint serves one stream at a time: this hello came after the end of every earlier one.
    confirm(std::exchange(evidence_wanted_, 0), "the endpoint greeted on a fresh stream");
  }
  if (!retired_) appear();
}

void EndpointHome::appear() {
  const bool same_boot = instance_.boot_id() == context_.session.self().boot_id();
  if (instance_.counter() != 0 && same_boot && known_ != Known::kAbsent) {
    return set_known(Known::kPresent, "");
  }
  context_.home_file.next_instance(config_.name, context_.session.self().boot_id(), "",
                                   [this, alive = std::weak_ptr(alive_)](const Result<std::uint64_t>& counter) {
                                     if (alive.expired()) return;
                                     if (!counter) {
                                       set_known(Known::kAbsent,
                                                 "the home file cannot be written: " + counter.error().message);
                                       return schedule_probe();
                                     }
                                     adopt_instance(*counter);
                                     set_known(Known::kPresent, "");
                                   });
}

void EndpointHome::schedule_probe() {
  probe_delay_ms_ = std::clamp(probe_delay_ms_ * 2, kProbeDelayMinMs, kProbeDelayMaxMs);
  next_probe_ = run_after(probe_delay_ms_ * lease::kNsPerMs, [this] { probe(); });
}

void EndpointHome::describe(record::Identity& identity) const {
  identity.set_kind(record::DEVICE_KIND_ENDPOINT);
  identity.set_address(config_.endpoint);
  identity.set_vendor(seen_.vendor);
  identity.set_product(seen_.product);
}

// --- Arming --------------------------------------------------------------------------------------------

void EndpointHome::on_record(const record::Device& device) {
  record_ = device;
  if (retired_) take_address();
  const record::Lease* l = lease();
  if (l == nullptr || l->instance().host_id() != context_.session.self().id()) {
    stop_looking(record_.last_token());
    return context_.pages.close(config_.name, record_.last_token());
  }
  if (l->phase() == record::PHASE_FENCING) return fence(l->token());
  // A confirmation that was lost on its way: to a coordinator that was away, or by a daemon that ended before it was
  // sent.
  if (context_.home_file.floor(config_.name).fenced() >= l->token() && confirming_ != l->token()) {
    return submit_confirmation(l->token(), "fenced before");
  }
  sync_page(*l);
  try_early();
}

// QEMU looks for its lease when the guest begins to run, so the page is there before it connects. Whether anything
// passes is decided when it is armed; what a page alone allows ends at the guest socket.
void EndpointHome::sync_page(const record::Lease& lease) {
  const std::uint64_t token = lease.token();
  const record::Host& self = context_.session.self();
  const bool guest_is_here = lease.start().host_id() == self.id() && !is_bare(lease.start());
  const bool over = retired_ || lease.instance().boot_id() != self.boot_id() || token <= dead_through_;
  if (!guest_is_here || over) return;
  context_.session.arm({config_.name, token}, isolation_ms());  // so that the page is renewed
  context_.pages.grant({config_.name, token, lease.start().guest_uuid(), lease.start().nonce(),
                        context_.session.deadline({config_.name, token})});
}

void EndpointHome::take_address() {
  for (const record::Presence& home : record_.homes()) {
    if (home.instance().host_id() != context_.session.self().id() || home.identity().address().empty()) continue;
    const bool news = std::exchange(config_.endpoint, home.identity().address()).empty();
    if (news && evidence_wanted_ != 0) probe();
  }
}

void EndpointHome::try_early() {
  const record::Lease* l = lease();
  if (early_ && !early_->process.alive()) early_.reset();
  if (l == nullptr || known_ == Known::kUnknown || !stands(l->token())) return;
  if (early_ && early_->guest_uuid == l->start().guest_uuid()) {
    GuestStream stream = std::move(*early_);
    early_.reset();
    on_stream(std::move(stream));
  }
}

void EndpointHome::on_stream(GuestStream stream) {
  if (retired_) {
    return log::warning("a guest connected to a device that the configuration does not name; it was turned away",
                        {{"DEVICE", config_.name}, {"GUEST_UUID", stream.guest_uuid}});
  }
  const record::Lease* l = lease();
  const bool theirs = l != nullptr && l->start().guest_uuid() == stream.guest_uuid && stands(l->token());
  if (!theirs || known_ == Known::kUnknown) {
    log::info("a guest connected before its lease; it waits",
              {{"DEVICE", config_.name}, {"GUEST_UUID", stream.guest_uuid}});
    early_ = std::move(stream);
    return;
  }
  if (arming_ || looking_ || relay_token_ != 0) {
    log::warning("a second stream for one lease was closed",
                 {{"DEVICE", config_.name}, {"GUEST_UUID", stream.guest_uuid}});
    return;
  }
  if (const auto may = may_begin(l->token()); !may) {
    log::warning("the stream was closed",
                 {{"DEVICE", config_.name}, {"TOKEN", std::to_string(l->token())}, {"ERROR", may.error().message}});
    // Armed before, and its relay is gone: the end of that stream must be proved, and then the lease ends.
    if (context_.home_file.floor(config_.name).armed() >= l->token() && evidence_wanted_ == 0)
      want_evidence(l->token());
    return;
  }
  if (wants_qemu() && !stream.enforces) return look_at_qemu(std::move(stream), l->token());
  begin_arming(std::move(stream), *l);
}

void EndpointHome::look_at_qemu(GuestStream stream, std::uint64_t token) {
  const int fd = stream.fd.get();
  const pid_t pid = stream.process.pid();
  looking_.emplace(Looking{std::move(stream), token, nullptr});
  looking_->witness = std::make_unique<QemuWitness>(fd, pid, context_.module_state,
                                                    [this](const Result<void>& enforces) { looked_at_qemu(enforces); });
}

void EndpointHome::looked_at_qemu(const Result<void>& enforces) {
  Looking looked = std::move(*looking_);
  looking_.reset();
  std::string why;
  if (!enforces) why = enforces.error().message;
  if (why.empty() && !context_.pages.holds(config_.name, looked.token))
    why = "its QEMU cannot be told of the lease: " + context_.pages.trouble();
  if (why.empty() && !looked.stream.process.alive()) why = "the guest has ended";
  if (why.empty() && !stands(looked.token)) why = "the lease ended before the stream began";
  if (why.empty()) {
    looked.stream.enforces = true;
    return on_stream(std::move(looked.stream));
  }
  log::warning("the stream was closed",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(looked.token)}, {"ERROR", why}});
  context_.stream_ended(config_.name, looked.token, why);
}

Result<void> EndpointHome::may_begin(std::uint64_t token) const {
  if (MUTANT(equal_token_is_armed)) return {};
  if (token <= dead_through_) return fail(ErrorCode::kRefused, "this token's stream is being fenced");
  if (known_ != Known::kPresent || evidence_wanted_ != 0)
    return fail(ErrorCode::kUnavailable, "the endpoint is not known to be there");
  // An equal token was armed before, so there was a stream whose end nobody has seen.
  if (context_.home_file.floor(config_.name).armed() >= token)
    return fail(ErrorCode::kRefused, "this token was armed before");
  return context_.home_file.may_arm(config_.name, token);
}

// The lease, or an earlier one, is over: its guest may be silent for ever.
void EndpointHome::stop_looking(std::uint64_t through_token) {
  if (!looking_ || looking_->token > through_token) return;
  const std::uint64_t token = looking_->token;
  looking_.reset();
  context_.stream_ended(config_.name, token, "the lease ended before the stream began");
}

void EndpointHome::begin_arming(GuestStream stream, const record::Lease& lease) {
  arming_.emplace(Arming{std::move(stream), lease.token(), lease.instance(), {}});
  probing_.reset();
  ++probe_generation_;
  connecting_ = connect_endpoint(config_.endpoint, kConnectTimeoutMs,
                                 [this, alive = std::weak_ptr(alive_)](Result<UniqueFd> endpoint) {
                                   if (alive.expired()) return;
                                   auto shared = std::make_shared<Result<UniqueFd>>(std::move(endpoint));
                                   post([this, alive, shared] {
                                     if (alive.expired()) return;
                                     connecting_.reset();
                                     endpoint_connected(std::move(*shared));
                                   });
                                 });
}

void EndpointHome::endpoint_connected(Result<UniqueFd> endpoint) {
  if (!arming_) return;
  if (!endpoint) {
    const std::string why = endpoint.error().message;
    give_up_arming(why);
    set_known(Known::kAbsent, why);
    return schedule_probe();
  }
  arming_->endpoint = std::move(*endpoint);
  if (MUTANT(arm_before_disk)) return armed_on_disk({});
  context_.home_file.record_armed(config_.name, arming_->token, arming_->instance.counter(),
                                  arming_->instance.boot_id(),
                                  [this, alive = std::weak_ptr(alive_)](const Result<void>& stored) {
                                    if (!alive.expired()) armed_on_disk(stored);
                                  });
}

void EndpointHome::armed_on_disk(const Result<void>& stored) {
  if (!arming_) return;
  const std::uint64_t token = arming_->token;
  if (!stored) return give_up_arming(stored.error().message);
  if (const auto still = context_.home_file.may_arm(config_.name, token); !still || token <= dead_through_) {
    return give_up_arming("the token was fenced meanwhile");
  }
  // While the disk was written the lease may have gone.
  if (!stands(token)) return give_up_arming("the lease ended before the stream began");
  context_.session.arm({config_.name, token}, isolation_ms());
  const std::uint64_t deadline_ns = context_.session.deadline({config_.name, token});
  if (deadline_ns <= boottime_now_ns()) {
    disarm_session(token);
    return give_up_arming("this host's session with the coordinator has lapsed");
  }
  RelayStart start;
  start.device = config_.name;
  start.token = token;
  start.guest_uuid = arming_->stream.guest_uuid;
  start.instance = arming_->instance.counter();
  start.peer_pid = arming_->stream.process.pid();
  start.deadline_ns = deadline_ns;
  start.guest = std::move(arming_->stream.fd);
  start.endpoint = std::move(arming_->endpoint);
  context_.pages.bind(config_.name, token, pid_for_itself(start.peer_pid));
  if (const auto spawned = context_.relays.spawn(std::move(start)); !spawned) {
    disarm_session(token);
    return give_up_arming(spawned.error().message);
  }
  relay_token_ = token;
  arming_.reset();
  log::info("armed", {{"DEVICE", config_.name},
                      {"TOKEN", std::to_string(token)},
                      {"GUEST_UUID", record_.lease().start().guest_uuid()}});
}

// The page of a lease that stands goes on, with or without a stream.
void EndpointHome::disarm_session(std::uint64_t token) {
  if (!context_.pages.holds(config_.name, token)) context_.session.disarm({config_.name, token});
}

void EndpointHome::give_up_arming(const std::string& why) {
  const std::uint64_t token = arming_->token;
  log::warning("the stream did not begin",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}, {"ERROR", why}});
  arming_.reset();
  connecting_.reset();
  context_.stream_ended(config_.name, token, why);
  if (known_ != Known::kPresent) schedule_probe();
  if (const record::Lease* l = lease(); l != nullptr && l->token() == token && l->phase() == record::PHASE_FENCING)
    fence(token);
}

void EndpointHome::set_deadline(std::uint64_t token, std::uint64_t deadline_ns) {
  context_.relays.renew(config_.name, token, deadline_ns);
  context_.pages.renew(config_.name, token, deadline_ns);
}

// --- Fencing -------------------------------------------------------------------------------------------

// QEMU after the relay, which then says why the stream ended.
void EndpointHome::fence(std::uint64_t token) {
  stop_looking(token);
  fence_stream(token);
  context_.pages.revoke(config_.name, token);
}

void EndpointHome::fence_stream(std::uint64_t token) {
  if (confirming_ == token || !context_.adopted) return;
  // On a new disk nothing is known of what was armed until the coordinator has supplied it; it asks again until then.
  if (!context_.home_file.has_floors()) return;
  if (arming_ && arming_->token == token) return;  // give_up_arming or armed_on_disk comes back here
  if (MUTANT(confirm_before_the_relay) && context_.relays.has(config_.name, token)) {
    context_.relays.revoke(config_.name, token);
    return confirm(token, "it was told to stop");
  }
  if (context_.relays.has(config_.name, token)) return context_.relays.revoke(config_.name, token);
  const home::Floor floor = context_.home_file.floor(config_.name);
  if (floor.fenced() >= token) return submit_confirmation(token, "fenced before");
  if (floor.armed() < token && evidence_wanted_ != token) return confirm(token, "it was never armed here");
  // It was armed, and its relay is not there to see the end of the stream.
  if (MUTANT(fence_without_evidence)) return confirm(token, "its relay is gone");
  if (evidence_wanted_ != token) want_evidence(token);
}

void EndpointHome::fenced_on_disk(std::uint64_t token) {
  context_.relays.acknowledge(config_.name, token);
  if (relay_token_ == token) relay_token_ = 0;
}

// --- The relay says ------------------------------------------------------------------------------------

void EndpointHome::on_relay_hello(const relay::Hello& hello) {
  // Retired: nobody here answers for it. Or it was silent for long, and has been decided about without it.
  const bool over =
      retired_ || hello.token() <= context_.home_file.floor(config_.name).fenced() || hello.token() < relay_token_;
  if (over && !MUTANT(old_relay_is_trusted)) return context_.relays.revoke(config_.name, hello.token());
  probing_.reset();
  ++probe_generation_;
  relay_token_ = hello.token();
  // The home file may be lost, and with it the number of this instance; a relay is of this boot and knows it.
  if (instance_.counter() == 0 && hello.instance() != 0) {
    adopt_instance(hello.instance());
  }
  context_.session.arm({config_.name, hello.token()}, isolation_ms());
  known_ = Known::kPresent;
}

void EndpointHome::on_relay_connected(std::uint64_t token) { context_.streaming(config_.name, token); }

void EndpointHome::on_relay_device(std::uint64_t /*token*/, const relay::DeviceSeen& seen) {
  if (seen_.vendor == seen.vendor() && seen_.product == seen.product()) return;
  seen_.vendor = seen.vendor();
  seen_.product = seen.product();
  send_report();
}

void EndpointHome::on_relay_ended(std::uint64_t token, const relay::Ended& ended) {
  end_reason_ = ending_text(ended.why());
  log::info("the stream ended", {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}, {"ERROR", end_reason_}});
  context_.stream_ended(config_.name, token, end_reason_);
  if (ended.why() == relay::ENDING_ENDPOINT_CLOSED) known_ = Known::kAbsent;
}

void EndpointHome::on_relay_fenced(std::uint64_t token) {
  confirm(token, "the endpoint's end of stream" + (end_reason_.empty() ? "" : "; " + end_reason_));
  if (known_ == Known::kAbsent && !retired_) {
    relay_token_ = 0;
    set_known(Known::kAbsent, "the endpoint closed the stream");
    schedule_probe();
  }
}

void EndpointHome::on_relay_lost(std::uint64_t token) {
  log::warning("the relay died", {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}});
  if (relay_token_ == token) relay_token_ = 0;
  context_.stream_ended(config_.name, token, "the relay died");
  if (context_.home_file.floor(config_.name).fenced() >= token) return;
  if (MUTANT(lost_relay_is_ignored)) return;
  want_evidence(token);
}

// Only a stream that begins from here on proves anything: a probe that is under way may have been greeted before.
void EndpointHome::want_evidence(std::uint64_t token) {
  evidence_wanted_ = token;
  dead_through_ = std::max(dead_through_, token);
  context_.pages.revoke(config_.name, token);
  probing_.reset();
  ++probe_generation_;
  probe();
}

}  // namespace usblease::host
