#include "daemon/host/hook_calls.h"

#include <algorithm>

#include "common/log.h"
#include "daemon/host/explain.h"

namespace usblease::host {
namespace {

constexpr std::uint32_t kWaitForFenceMs = 5'000;
constexpr std::uint32_t kWaitOptionalMs = 7 * 86'400'000U;
constexpr std::uint32_t kWaitMigrationMs = 3'600'000;
constexpr std::uint32_t kMarginMs = 500;

}  // namespace

HookCalls::HookCalls(Starts& starts, Acquisitions& acquisitions, FindDevice find_device, Release release,
                     BeforeStart before_start)
    : starts_(starts),
      acquisitions_(acquisitions),
      find_device_(std::move(find_device)),
      release_(std::move(release)),
      before_start_(std::move(before_start)) {}

void HookCalls::handle(const api::HookCall& call, const std::string& principal, const Answer& answer) {
  const std::string& operation = call.operation();
  if (operation == "prepare") return prepare(call, principal, answer);
  if (operation == "migrate") return admit(call, principal, answer, true);
  if (operation == "start") return check_start(call, answer);
  if (operation == "started") {
    starts_.started(call);
  } else if (operation == "stopped" || operation == "release") {
    starts_.stopped(call);
  }
  answer(command::CODE_OK, "");
}

command::Acquire HookCalls::make_request(const api::HookCall& call, const GuestStart& start,
                                         const std::string& principal) const {
  command::Acquire request;
  request.set_request_id("hook-" + start.start.nonce());
  *request.mutable_start() = start.start;
  request.set_guest_name(call.guest_name());
  request.set_principal(principal);
  return request;
}

void HookCalls::prepare(const api::HookCall& call, const std::string& principal, const Answer& answer) {
  // The destination of a migration has reserved already, in `migrate`; the source holds the lease until it stops.
  if (const GuestStart* reserved = starts_.claim_reservation(call); reserved != nullptr)
    return answer(command::CODE_OK, "");
  admit(call, principal, answer, false);
}

void HookCalls::admit(const api::HookCall& call, const std::string& principal, const Answer& answer, bool reservation) {
  const GuestStart& start = starts_.prepare(call);
  acquire_optional(call, start, principal);
  command::Acquire request = make_request(call, start, principal);
  request.set_reservation(reservation);
  std::uint32_t wait_ms = 0;
  for (const api::Declared& declared : call.devices()) {
    if (!declared.required()) continue;
    request.add_devices(declared.device());
    if (declared.how() == api::DECLARATION_METADATA) request.add_attach_devices(declared.device());
    wait_ms = std::max(wait_ms, declared.wait_s() * 1000);
  }
  if (request.devices().empty()) return answer(command::CODE_OK, "");
  // The answer must reach libvirt before the hook's own deadline.
  const std::uint32_t left_ms =
      call.deadline_ms() > 2 * kMarginMs ? call.deadline_ms() - kMarginMs : call.deadline_ms() / 2;
  request.set_wait_ms(reservation ? kWaitMigrationMs : std::min(wait_ms, left_ms));
  ask(request, std::min(kWaitForFenceMs, left_ms), answer);
}

void HookCalls::ask(const command::Acquire& request, std::uint32_t fence_wait_ms, const Answer& answer) {
  const auto queued = [answer, reservation = request.reservation()](const command::Reply& /*reply*/) {
    if (reservation) answer(command::CODE_OK, "");
  };
  acquisitions_.acquire(request, queued, [this, request, fence_wait_ms, answer](const command::Reply& reply) {
    if (reply.status().code() == command::CODE_OK) return answer(command::CODE_OK, "");
    // The guest's own previous start, or somebody's fence that is under way: gone in milliseconds.
    const bool about_to_end =
        std::all_of(reply.obstacles().begin(), reply.obstacles().end(), [&](const auto& obstacle) {
          return obstacle.ahead() == 0 && obstacle.token() != 0 &&
                 (obstacle.ending() || obstacle.guest() == request.guest_name());
        });
    if (request.wait_ms() == 0 && fence_wait_ms != 0 && !reply.obstacles().empty() && about_to_end) {
      command::Acquire again = request;
      again.set_wait_ms(fence_wait_ms);
      return ask(again, 0, answer);
    }
    starts_.refused(request.start());
    const bool timed_out = reply.status().code() == command::CODE_TIMED_OUT;
    answer(timed_out ? command::CODE_REFUSED : reply.status().code(),
           explain(reply, request.guest_name(), Asked::kAtStart));
  });
}

// Devices without which the guest may start: asked for with all patience, attached when they come.
void HookCalls::acquire_optional(const api::HookCall& call, const GuestStart& start, const std::string& principal) {
  for (const api::Declared& declared : call.devices()) {
    if (declared.required()) continue;
    command::Acquire request = make_request(call, start, principal);
    request.set_request_id("hook-" + start.start.nonce() + "-" + declared.device().substr(0, 32));
    request.add_devices(declared.device());
    if (declared.how() == api::DECLARATION_METADATA) request.add_attach_devices(declared.device());
    request.set_wait_ms(kWaitOptionalMs);
    acquisitions_.acquire(
        request, nullptr, [device = declared.device(), guest = call.guest_name()](const command::Reply& reply) {
          if (reply.status().code() == command::CODE_OK) return;
          log::warning("an optional device was not granted",
                       {{"DEVICE", device}, {"GUEST", guest}, {"ERROR", explain(reply, guest, Asked::kAtStart)}});
        });
  }
}

// QEMU is about to run: what prepare granted must still stand.
void HookCalls::check_start(const api::HookCall& call, const Answer& answer) {
  const GuestStart* start = starts_.of_domain(call.guest_uuid(), call.domain_id());
  if (start == nullptr)
    return answer(command::CODE_REFUSED,
                  "usbleased does not know this start of guest " + call.guest_name() + "; start it again");
  for (const api::Declared& declared : call.devices()) {
    if (!declared.required()) continue;
    const record::Device* device = find_device_(declared.device());
    const bool stands = device != nullptr && device->has_lease() &&
                        device->lease().start().nonce() == start->start.nonce() &&
                        device->lease().phase() != record::PHASE_FENCING;
    const bool reserved = acquisitions_.waits("hook-" + start->start.nonce());
    if (!stands && !reserved)
      return answer(command::CODE_REFUSED, "the lease of device " + declared.device() + " ended before guest " +
                                               call.guest_name() + " ran; start it again");
  }
  before_start_(start->start, [answer](const Result<void>& ready) {
    if (ready) return answer(command::CODE_OK, "");
    answer(command::CODE_REFUSED, ready.error().message);
  });
}

void HookCalls::abandon(const api::HookCall& call) {
  if (call.operation() != "prepare") return;
  const GuestStart* start = starts_.of_domain(call.guest_uuid(), call.domain_id());
  if (start == nullptr) return;
  const record::Start identity = start->start;
  acquisitions_.abandon("hook-" + identity.nonce(), "the hook gave up");
  release_(identity, "the hook gave up");
}

}  // namespace usblease::host
