#include "daemon/host/usb_home.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/text.h"

namespace usblease::host {
namespace {

// How long the next holder waits for libvirt, which lets nobody have what it believes another guest to have. It is safe
// before.
constexpr std::uint64_t kTidyNs = 5'000 * lease::kNsPerMs;
constexpr std::uint64_t kTidyLookNs = 20 * lease::kNsPerMs;
constexpr std::uint64_t kRetryNs = 500 * lease::kNsPerMs;
// Unbinding a device that answers takes milliseconds, and QEMU unplugs one within a second.
constexpr std::uint64_t kClimbNs = 10'000 * lease::kNsPerMs;

}  // namespace

UsbHome::UsbHome(DeviceConfig config, HomeContext& context, UsbGate& gate, const UsbHooks& hooks, HomeRole role)
    : DeviceHome(std::move(config), context, role), gate_(gate), hooks_(hooks) {
  const home::Floor floor = context_.home_file.floor(config_.name);
  // The same boot: a restart of the daemon does not end an instance. Whether it is still there, the bus will say.
  if (floor.instance() == 0 || floor.boot_id() != context_.session.self().boot_id()) return;
  adopt_instance(floor.instance());
  place_ = parse_place(floor.place());
}

// --- Is it there? ------------------------------------------------------------------------------------

void UsbHome::on_sighting(const UsbSighting& sighting) {
  looked_ = true;
  sighting_ = sighting;
  look_again();
}

void UsbHome::look_again() {
  if (!looked_) return;
  if (!sighting_.device) {
    // Somebody plugged in its twin: that says nothing of the one that is in use.
    const bool stays = open_ && usb::Sysfs().inode_at(open_->place.port) == open_->place.inode;
    if (stays) return;
    leave(sighting_.detail);
    return set_known(Known::kAbsent, sighting_.detail);
  }
  seen_ = *sighting_.device;
  const UsbPlace place = place_of(seen_);
  if (place_ == place && instance_.counter() != 0) return set_known(Known::kPresent, sighting_.detail);
  leave("another was plugged in at " + place.port);
  appear(place);
}

// Unplugging ends every handle and every transfer: the kernel takes the device out of sysfs after that.
void UsbHome::leave(const std::string& why) {
  if (!place_) return;
  const home::Floor floor = context_.home_file.floor(config_.name);
  const record::Lease* l = lease();
  if (l != nullptr && stands(l->token()) && l->phase() == record::PHASE_GRANTED) hooks_.unplugged(config_.name, *l);
  place_.reset();
  known_ = Known::kUnknown;
  if (opening_) give_up_opening("it left the bus meanwhile; if it always does, it needs reset=no");
  open_.reset();
  if (floor.armed() > floor.fenced() && confirming_ != floor.armed())
    confirm(floor.armed(), "the device left the bus: " + why);
}

void UsbHome::appear(const UsbPlace& place) {
  place_ = place;
  context_.home_file.next_instance(config_.name, context_.session.self().boot_id(), to_text(place),
                                   [this, alive = std::weak_ptr(alive_), place](const Result<std::uint64_t>& counter) {
                                     if (alive.expired() || place_ != place) return;
                                     if (!counter) {
                                       place_.reset();
                                       return set_known(Known::kAbsent,
                                                        "the home file cannot be written: " + counter.error().message);
                                     }
                                     adopt_instance(*counter);
                                     set_known(Known::kPresent, sighting_.detail);
                                   });
}

void UsbHome::report() {
  if (retired_) return;
  if (known_ == Known::kUnknown) detail_ = "the bus has not been looked at yet";
  send_report();
  // A home file that could not be written may be by now.
  if (known_ == Known::kAbsent && sighting_.device) look_again();
}

void UsbHome::describe(record::Identity& identity) const {
  identity.set_kind(record::DEVICE_KIND_USB);
  if (known_ == Known::kPresent) identity.set_address(seen_.name);
  identity.set_vendor(config_.usb ? config_.usb->vendor : seen_.vendor);
  identity.set_product(config_.usb ? config_.usb->product : seen_.product);
  identity.set_serial(seen_.serial.empty() && config_.usb ? config_.usb->serial : escape_text(seen_.serial));
}

void UsbHome::on_record(const record::Device& device) {
  record_ = device;
  const record::Lease* l = lease();
  if (l == nullptr || l->instance().host_id() != context_.session.self().id()) return;
  if (l->phase() == record::PHASE_FENCING) return fence(l->token());
  const home::Floor floor = context_.home_file.floor(config_.name);
  // A confirmation that was lost on its way: to a coordinator that was away, or by a daemon that ended before it was
  // sent.
  if (floor.fenced() >= l->token() && confirming_ != l->token())
    return submit_confirmation(l->token(), "fenced before");
  adopt_open(*l);
}

std::optional<UsbPlace> UsbHome::calm_place() const { return opening_ || ending_ ? std::nullopt : place_; }

// --- Opening -----------------------------------------------------------------------------------------

// Armed by an earlier daemon, and not fenced: the guest has it, if the kernel says that it still does.
void UsbHome::adopt_open(const record::Lease& lease) {
  const std::uint64_t token = lease.token();
  const bool armed = context_.home_file.floor(config_.name).armed() == token;
  if (!armed || open_ || opening_ || ending_ || adopting_ == token || !place_ || !stands(token)) return;
  if (token <= dead_through_) return;
  adopting_ = token;
  gate_.look(*place_, [this, alive = std::weak_ptr(alive_), token](const Result<UsbLease>& kernel) {
    if (!alive.expired()) adopted(token, kernel);
  });
}

void UsbHome::adopted(std::uint64_t token, const Result<UsbLease>& kernel) {
  if (adopting_ != token) return;
  adopting_ = 0;
  if (!place_ || !stands(token) || open_ || opening_ || token <= dead_through_) return;
  const std::uint64_t now_ns = boottime_now_ns();
  if (kernel && (kernel->token != token || kernel->deadline_ns <= now_ns)) {
    const std::string why = "its deadline passed while no daemon was here";
    context_.stream_ended(config_.name, token, why);
    return fence(token);
  }
  context_.session.arm({config_.name, token}, isolation_ms());
  const std::uint64_t grace_ns = isolation_ms() * lease::kNsPerMs;  // without the kernel: until the first renewal
  set_open(token, *place_, kernel.has_value(), kernel ? kernel->deadline_ns : now_ns + grace_ns);
  log::info("an earlier daemon's guest goes on", {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}});
}

Result<void> UsbHome::may_open(std::uint64_t token) const {
  if (token <= dead_through_) return fail(ErrorCode::kRefused, "this token is being fenced");
  if (known_ != Known::kPresent || !place_) return fail(ErrorCode::kUnavailable, "it is not plugged in");
  if (!stands(token)) return fail(ErrorCode::kRefused, "its lease does not stand");
  if (lease()->start().host_id() != context_.session.self().id()) {
    return fail(ErrorCode::kRefused, "it is plugged in at " + context_.session.self().id() +
                                         ", and the guest runs on " + lease()->start().host_id());
  }
  // Only what this daemon, or the kernel, knows to be open goes on.
  if (context_.home_file.floor(config_.name).armed() >= token)
    return fail(ErrorCode::kRefused, "this token was armed before");
  return context_.home_file.may_arm(config_.name, token);
}

void UsbHome::open_for(std::uint64_t token, const UsbHolder& holder, Done done) {
  if (open_ && open_->token == token && token > dead_through_) return change_holder(holder, std::move(done));
  if (opening_ && opening_->token == token) {
    // Whoever asked first only kept the place.
    auto before = std::exchange(opening_->done, nullptr);
    opening_->done = [this, alive = std::weak_ptr(alive_), before = std::move(before), holder,
                      done = std::move(done)](const Result<UsbPlace>& place) {
      before(place);
      if (alive.expired() || !place) return done(place);
      change_holder(holder, done);
    };
    return;
  }
  if (auto may = may_open(token); !may) return done(tl::unexpected(may.error()));
  opening_.emplace(Opening{token, holder, *place_, false, std::move(done)});
  context_.home_file.record_armed(config_.name, token, instance_.counter(), instance_.boot_id(),
                                  [this, alive = std::weak_ptr(alive_), token](const Result<void>& stored) {
                                    if (!alive.expired()) armed_on_disk(token, stored);
                                  });
}

// While something took its time the lease may have gone.
Result<void> UsbHome::still_opening(std::uint64_t token) const {
  if (token <= dead_through_ || !stands(token))
    return fail(ErrorCode::kRefused, "the lease ended before the device was open");
  return {};
}

void UsbHome::armed_on_disk(std::uint64_t token, const Result<void>& stored) {
  if (!opening_ || opening_->token != token) return;
  if (!stored) return give_up_opening(stored.error().message);
  if (const auto still = still_opening(token); !still) return give_up_opening(still.error().message);
  const auto kernel = gate_.check_kernel();
  if (!kernel && config_.min_rung > Rung::kAdmission)
    return give_up_opening("its policy (min_rung) wants a fence that this host does not have: " +
                           kernel.error().message);
  context_.session.arm({config_.name, token}, isolation_ms());
  const std::uint64_t deadline_ns = context_.session.deadline({config_.name, token});
  if (deadline_ns <= boottime_now_ns()) return give_up_opening("this host's session with the coordinator has lapsed");
  opening_->in_kernel = kernel.has_value();
  if (!kernel) {
    log::warning("there is no fence in the kernel: until it is unbound, nothing but libvirt holds the device back",
                 {{"DEVICE", config_.name}, {"ERROR", kernel.error().message}});
    return bind(token, {});
  }
  // This process first: it resets the device.
  gate_.arm(opening_->place, {token, deadline_ns}, this_process(),
            [this, alive = std::weak_ptr(alive_), token](const Result<void>& armed) {
              if (!alive.expired()) bind(token, armed);
            });
}

void UsbHome::bind(std::uint64_t token, const Result<void>& armed) {
  if (!opening_ || opening_->token != token) return;
  if (!armed) return give_up_opening(armed.error().message);
  gate_.bind(opening_->place, config_.reset, [this, alive = std::weak_ptr(alive_), token](const Result<void>& result) {
    if (!alive.expired()) bound(token, result);
  });
}

void UsbHome::bound(std::uint64_t token, const Result<void>& result) {
  if (!opening_ || opening_->token != token) return;
  if (!result) return give_up_opening(result.error().message);
  if (const auto still = still_opening(token); !still) return give_up_opening(still.error().message);
  Opening opened = std::move(*opening_);
  opening_.reset();
  set_open(token, opened.place, opened.in_kernel, context_.session.deadline({config_.name, token}));
  log::info("open for its holder", {{"DEVICE", config_.name},
                                    {"TOKEN", std::to_string(token)},
                                    {"GUEST_UUID", lease()->start().guest_uuid()},
                                    {"PORT", opened.place.port}});
  change_holder(opened.holder, std::move(opened.done));
}

void UsbHome::give_up_opening(const std::string& why) {
  Opening given_up = std::move(*opening_);
  opening_.reset();
  log::warning("the device was not opened",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(given_up.token)}, {"ERROR", why}});
  given_up.done(fail(ErrorCode::kRefused, config_.name + " cannot be opened: " + why));
  if (const record::Lease* l = lease(); l != nullptr && l->phase() == record::PHASE_FENCING) fence(l->token());
}

void UsbHome::change_holder(const UsbHolder& holder, Done done) {
  if (!open_) return done(fail(ErrorCode::kRefused, config_.name + ": its lease ended"));
  if (!open_->in_kernel) return done(open_->place);
  gate_.arm(open_->place, {open_->token, open_->deadline_ns}, holder,
            [place = open_->place, done = std::move(done)](const Result<void>& armed) {
              if (!armed) return done(tl::unexpected(armed.error()));
              done(place);
            });
}

void UsbHome::set_open(std::uint64_t token, const UsbPlace& place, bool in_kernel, std::uint64_t deadline_ns) {
  open_.emplace(Open{token, place, in_kernel, deadline_ns, {}});
  watch_deadline();
}

void UsbHome::set_deadline(std::uint64_t token, std::uint64_t deadline_ns) {
  if (!open_ || open_->token != token || deadline_ns <= open_->deadline_ns) return;
  open_->deadline_ns = deadline_ns;
  if (open_->in_kernel) gate_.extend(open_->place, {token, deadline_ns});
  watch_deadline();
}

void UsbHome::watch_deadline() {
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t left_ns = open_->deadline_ns > now_ns ? open_->deadline_ns - now_ns : 0;
  open_->expiry = run_after(left_ns, [this] {
    const std::uint64_t token = open_->token;
    const std::string why = "the deadline passed without a renewal";
    log::warning(why, {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}});
    context_.stream_ended(config_.name, token, why);
    fence(token);
  });
}

// --- Fencing -----------------------------------------------------------------------------------------

void UsbHome::fence(std::uint64_t token) {
  if (confirming_ == token || (ending_ && ending_->token == token) || !context_.adopted) return;
  // On a new disk nothing is known of what was armed until the coordinator has supplied it; it asks again until then.
  if (!context_.home_file.has_floors()) return;
  const home::Floor floor = context_.home_file.floor(config_.name);
  if (floor.fenced() >= token) return submit_confirmation(token, "fenced before");
  dead_through_ = std::max(dead_through_, token);
  if (opening_ && opening_->token <= token) give_up_opening("the lease ended before the device was open");
  if (floor.armed() < token) return confirm(token, "it was never armed here");
  const bool same_instance =
      lease() == nullptr || lease()->token() != token || lease()->instance().counter() == instance_.counter();
  if (!same_instance || !place_) {
    // Before the bus was looked at, on_sighting() decides; after that, it is gone.
    if (!looked_ && !retired_) return;
    return confirm(token, "the device left the bus");
  }
  ending_.emplace(Ending{token, *place_, false, false, boottime_now_ns(), {}, {}});
  open_.reset();
  if (const record::Lease* l = lease(); l != nullptr && l->token() == token) hooks_.give_up(*l, *place_);
  ending_->climb = run_after(kClimbNs, [this, token] { climb(token); });
  gate_.disarm(*place_, token, [this, alive = std::weak_ptr(alive_), token](const Result<void>& result) {
    if (!alive.expired()) disarmed(token, result);
  });
}

void UsbHome::disarmed(std::uint64_t token, const Result<void>& result) {
  if (!ending_ || ending_->token != token) return;
  ending_->in_kernel = result.has_value();
  if (!result && result.error().code != ErrorCode::kUnavailable) {
    log::error("the kernel's fence does not close",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}, {"ERROR", result.error().message}});
  }
  unbind(token);
}

void UsbHome::unbind(std::uint64_t token) {
  gate_.unbind(ending_->place, [this, alive = std::weak_ptr(alive_), token](const Result<void>& result) {
    if (!alive.expired()) unbound(token, result);
  });
}

void UsbHome::unbound(std::uint64_t token, const Result<void>& result) {
  if (!ending_ || ending_->token != token || confirming_ == token) return;
  if (!result) {
    log::error("cannot unbind the device; trying again",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}, {"ERROR", result.error().message}});
    ending_->retry = run_after(kRetryNs, [this, token] { unbind(token); });
    return;
  }
  // Nothing but the kernel keeps QEMU from opening the device anew once it is bound for the next one.
  const bool tidy = !hooks_.in_use(config_.name);
  if (ending_->in_kernel && (tidy || boottime_now_ns() >= ending_->begun_ns + kTidyNs))
    return confirm(token, "disarmed in the kernel, and unbound");
  if (tidy) return confirm(token, "unbound, and given up by QEMU");
  const std::uint64_t pause_ns = ending_->in_kernel ? kTidyLookNs : kRetryNs;
  ending_->retry = run_after(pause_ns, [this, token] { unbind(token); });
}

// It should be over by now. A QEMU that is dead has no handle; with the kernel's fence closed that is as good as
// unbound.
void UsbHome::climb(std::uint64_t token) {
  if (!std::exchange(ending_->destroyed, true)) {
    log::error("the device cannot be taken from its guest; the guest is destroyed",
               {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}});
    if (const record::Lease* l = lease(); l != nullptr && l->token() == token) hooks_.destroy(*l);
  }
  if (ending_->in_kernel && !hooks_.in_use(config_.name)) return confirm(token, "its guest was destroyed");
  ending_->climb = run_after(kRetryNs, [this, token] { climb(token); });
}

void UsbHome::fenced_on_disk(std::uint64_t token) {
  if (ending_ && ending_->token <= token) ending_.reset();
  if (open_ && open_->token <= token) open_.reset();
  // What the bus showed while it was in use is looked at now.
  if (sighting_.device.has_value() != (known_ == Known::kPresent)) look_again();
}

}  // namespace usblease::host
