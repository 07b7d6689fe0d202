#include "daemon/host/starts.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/text.h"

namespace usblease::host {
namespace {

// From prepare to a QEMU process. Slow storage can make libvirt wait; a start without a process holds leases.
constexpr std::uint64_t kPrepareMaxNs = 120ULL * 1'000'000'000;
constexpr std::uint64_t kLookEveryNs = 2'000'000;
constexpr std::size_t kEarlyEndsMax = 1024;

bool process_lives(int pid, std::uint64_t start_ticks) {
  const auto ticks = process_start_ticks(pid);
  return ticks && *ticks == start_ticks;
}

}  // namespace

Starts::Starts(Options options, std::function<void(const record::Start&)> ended,
               std::function<void(const GuestStart&)> running, std::function<void(const GuestStart&)> process)
    : options_(std::move(options)),
      ended_(std::move(ended)),
      running_(std::move(running)),
      process_(std::move(process)) {}

std::string Starts::new_nonce() const { return random_hex(8); }

GuestStart& Starts::add(const record::Start& start, const std::string& guest_name) {
  GuestStart& added = starts_[start.nonce()];
  added.start = start;
  added.guest_name = guest_name;
  added.check = run_after(kPrepareMaxNs, [this, nonce = start.nonce()] {
    GuestStart& waiting = starts_.at(nonce);
    look_for_process(waiting);
    if (!waiting.process) end(nonce, "no QEMU appeared in time");
  });
  return added;
}

const GuestStart& Starts::prepare(const api::HookCall& call) {
  // libvirt runs one start of a domain at a time, so an earlier one of this libvirtd is over, whether or not we were
  // told.
  for (const std::string& nonce : nonces_of(call.guest_uuid())) {
    if (can_be_about(starts_.at(nonce), call)) end(nonce, "a later start of the guest began");
  }
  record::Start start;
  start.set_guest_uuid(call.guest_uuid());
  start.set_nonce(new_nonce());
  start.set_host_id(options_.host_id);
  start.set_boot_id(options_.boot_id);
  start.set_domain_id(call.domain_id());
  start.set_prepared_boottime_ns(call.invoked_boottime_ns());
  start.set_libvirtd_pid(call.libvirtd_pid());
  start.set_libvirtd_start_ticks(call.libvirtd_start_ticks());
  GuestStart& added = add(start, call.guest_name());
  added.reservation = call.operation() == "migrate";
  return added;
}

const GuestStart* Starts::claim_reservation(const api::HookCall& call) {
  for (auto& [nonce, start] : starts_) {
    if (start.start.guest_uuid() != call.guest_uuid() || !start.reservation || start.process) continue;
    start.start.set_domain_id(call.domain_id());
    start.reservation = false;
    return &start;
  }
  return nullptr;
}

void Starts::started(const api::HookCall& call) {
  for (const std::string& nonce : nonces_of(call.guest_uuid())) {
    GuestStart& start = starts_.at(nonce);
    if (start.start.domain_id() != call.domain_id()) continue;
    look_for_process(start);
    if (start.process) set_running(start);
  }
}

// QEMU opens its devices some tens of milliseconds after it was executed.
void Starts::expect_process(const record::Start& start) { look_soon(start.nonce(), boottime_now_ns() + kPrepareMaxNs); }

void Starts::look_soon(const std::string& nonce, std::uint64_t give_up_ns) {
  const auto found = starts_.find(nonce);
  if (found == starts_.end() || found->second.process) return;
  look_for_process(found->second);
  if (found->second.process || boottime_now_ns() >= give_up_ns) return;
  found->second.look = run_after(kLookEveryNs, [this, nonce, give_up_ns] { look_soon(nonce, give_up_ns); });
}

// A call can be about a start only if it began after the start's own prepare, comes from the libvirtd that prepared it
// (or that one is gone), and the start has no living QEMU.
bool Starts::can_be_about(const GuestStart& start, const api::HookCall& call) const {
  const record::Start& s = start.start;
  if (call.invoked_boottime_ns() <= s.prepared_boottime_ns()) return false;
  const bool same_libvirtd =
      s.libvirtd_pid() == call.libvirtd_pid() && s.libvirtd_start_ticks() == call.libvirtd_start_ticks();
  if (!same_libvirtd && process_lives(s.libvirtd_pid(), s.libvirtd_start_ticks())) return false;
  return !start.process || !start.process->alive();
}

void Starts::stopped(const api::HookCall& call) {
  if (!all_adopted_ && early_ends_.size() < kEarlyEndsMax) early_ends_.push_back(call);
  for (const std::string& nonce : nonces_of(call.guest_uuid())) {
    GuestStart& start = starts_.at(nonce);
    if (!start.process) look_for_process(start);
    if (can_be_about(start, call)) {
      end(nonce, "the hook says " + call.operation());
    } else {
      log::debug("a hook call is not about this start",
                 {{"GUEST", start.guest_name}, {"GUEST_UUID", call.guest_uuid()}});
    }
  }
}

Result<const GuestStart*> Starts::running_guest(const Guest& guest) {
  if (const GuestStart* known = of_domain(guest.uuid, guest.domain_id); known != nullptr && known->process)
    return known;
  auto process = qemu_of(options_.libvirt_run_dir, guest.name);
  if (!process) return tl::unexpected(process.error());
  record::Start start;
  start.set_guest_uuid(guest.uuid);
  start.set_nonce(new_nonce());
  start.set_host_id(options_.host_id);
  start.set_boot_id(options_.boot_id);
  start.set_domain_id(guest.domain_id);
  start.set_prepared_boottime_ns(boottime_now_ns());
  GuestStart& added = add(start, guest.name);
  set_process(added, std::move(*process));
  set_running(added);
  return &added;
}

void Starts::adopt(const record::Start& start, const std::string& guest_name, bool reservation) {
  if (is_bare(start) || start.host_id() != options_.host_id || start.boot_id() != options_.boot_id) return;
  if (starts_.contains(start.nonce())) return;
  GuestStart& added = add(start, guest_name);
  added.reservation = reservation;
  look_for_process(added);
  if (added.process) return;
  const std::uint64_t age_ns = boottime_now_ns() - start.prepared_boottime_ns();
  if (age_ns > kPrepareMaxNs) end(start.nonce(), "its QEMU is gone");
}

void Starts::all_adopted() {
  if (std::exchange(all_adopted_, true)) return;
  for (const api::HookCall& call : std::exchange(early_ends_, {})) stopped(call);
}

void Starts::reconcile(const std::vector<Guest>& guests) {
  std::map<std::string, const Guest*> by_uuid;
  for (const Guest& guest : guests) by_uuid[guest.uuid] = &guest;
  std::vector<std::string> over;
  for (auto& [nonce, start] : starts_) {
    const auto found = by_uuid.find(start.start.guest_uuid());
    const Guest* guest = found == by_uuid.end() ? nullptr : found->second;
    // The record of a start that migrated here does not say which domain it became.
    if (guest != nullptr && guest->running && start.start.domain_id() < 0 &&
        of_domain(guest->uuid, guest->domain_id) == nullptr)
      start.start.set_domain_id(guest->domain_id);
    if (guest != nullptr && guest->running && guest->domain_id == start.start.domain_id()) {
      look_for_process(start);
      if (start.process) set_running(start);
      continue;
    }
    const bool libvirt_went_on = guest != nullptr && guest->running && guest->domain_id > start.start.domain_id();
    if (libvirt_went_on || (start.process && !start.process->alive())) over.push_back(nonce);
  }
  for (const std::string& nonce : over) end(nonce, "libvirt does not run it any more");
}

void Starts::check(const std::string& guest_uuid) {
  for (const std::string& nonce : nonces_of(guest_uuid)) {
    GuestStart& start = starts_.at(nonce);
    if (start.process && !start.process->alive()) end(nonce, "its QEMU ended");
  }
}

void Starts::seen(const std::string& guest_uuid, GuestProcess process) {
  for (auto& [nonce, start] : starts_) {
    if (start.start.guest_uuid() == guest_uuid && !start.process) return set_process(start, std::move(process));
  }
}

void Starts::look_for_process(GuestStart& start) {
  if (start.process) return;
  auto found = qemu_of(options_.libvirt_run_dir, start.guest_name);
  if (!found) return;
  // A name can have been given to another guest.
  auto process = is_qemu_of(found->pid(), options_.libvirt_run_dir, start.guest_name, start.start.guest_uuid());
  if (process) set_process(start, std::move(*process));
}

void Starts::set_process(GuestStart& start, GuestProcess process) {
  start.process = std::move(process);
  start.check = SourceHandle();
  auto watch = watch_exit(start.process->pidfd(), [this, nonce = start.start.nonce()] {
    post([this, nonce] {
      if (starts_.contains(nonce)) end(nonce, "its QEMU ended");
    });
  });
  if (watch) {
    start.exit_watch = std::move(*watch);
  } else {
    log::error("cannot watch a guest's QEMU", {{"GUEST", start.guest_name}, {"ERROR", watch.error().message}});
  }
  if (process_) process_(start);
}

void Starts::set_running(GuestStart& start) {
  if (start.declared_started) return;
  start.declared_started = true;
  running_(start);
}

void Starts::end(const std::string& nonce, const std::string& why) {
  auto ended = starts_.extract(nonce);
  if (ended.empty()) return;
  log::info("a guest's start has ended",
            {{"GUEST", ended.mapped().guest_name}, {"GUEST_UUID", ended.mapped().start.guest_uuid()}, {"ERROR", why}});
  ended_(ended.mapped().start);
}

const GuestStart* Starts::find(const record::Start& start) const {
  const auto found = starts_.find(start.nonce());
  return found == starts_.end() ? nullptr : &found->second;
}

bool Starts::any_nonce(const std::function<bool(const std::string&)>& test) const {
  return std::any_of(starts_.begin(), starts_.end(), [&](const auto& start) { return test(start.first); });
}

const GuestStart* Starts::of_domain(const std::string& guest_uuid, int domain_id) const {
  for (const auto& [nonce, start] : starts_) {
    if (start.start.guest_uuid() == guest_uuid && start.start.domain_id() == domain_id) return &start;
  }
  return nullptr;
}

std::vector<std::string> Starts::nonces_of(const std::string& guest_uuid) const {
  std::vector<std::string> out;
  for (const auto& [nonce, start] : starts_) {
    if (start.start.guest_uuid() == guest_uuid) out.push_back(nonce);
  }
  return out;
}

}  // namespace usblease::host
