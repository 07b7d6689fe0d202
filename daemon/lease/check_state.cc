#include "daemon/lease/check_state.h"

#include <algorithm>
#include <set>

#include "daemon/lease/fields.h"
#include "daemon/lease/keys.h"

namespace usblease::lease {
namespace {

Checked is_so(bool holds, const std::string& field, const std::string& allowed) {
  return holds ? Checked() : bad_field(field, allowed);
}

Checked check(const record::Lease& lease, std::uint64_t last_token) {
  const bool ending = lease.phase() == record::PHASE_FENCING;
  // A lease that only a floor remembers has no start (home.cc, adopt_armed); it can only be fenced.
  const bool nobody = ending && lease.start().ByteSizeLong() == 0 && lease.request_id().empty();
  return first_error(
      is_so(lease.token() != 0 && lease.token() <= last_token, "the lease's token", "1 to the last token"),
      is_so(lease.phase() >= record::PHASE_GRANTED && lease.phase() <= record::PHASE_FENCING, "the lease's phase",
            "1 to 3"),
      check_instance(lease.instance()), nobody ? Checked() : check_start(lease.start()),
      nobody ? Checked() : check_identifier("the lease's request", lease.request_id()),
      check_text("the lease's guest", lease.guest_name(), kNameBytesMax),
      check_text("the lease's principal", lease.principal(), kNameBytesMax),
      check_text("the lease's end", lease.end_reason(), kReasonBytesMax),
      check_text("who ended the lease", lease.ended_by(), kNameBytesMax));
}

}  // namespace

Checked check_device(const record::Device& device) {
  if (device.homes_size() > static_cast<int>(kHomesPerDeviceMax)) return bad_field("the list of homes", "at most 16");
  std::set<std::string> homes;
  for (const auto& home : device.homes()) {
    if (auto checked = check_presence(home); !checked) return checked;
    if (!homes.insert(home.instance().host_id()).second) return bad_field("the list of homes", "each home once");
  }
  return first_error(
      check_leased_name(device.name()),
      is_so(!is_lock(device.name()) || device.homes().empty(), "the list of homes", "none, for a lock"),
      check_policy(device.policy()), check_token("the last token", device.last_token()),
      device.last_request_id().empty() ? Checked() : check_identifier("the last request", device.last_request_id()),
      device.has_lease() ? check(device.lease(), device.last_token()) : Checked());
}

namespace {

Checked check(const record::Request& request, const State& state) {
  const auto& names = request.devices();
  const bool known =
      std::all_of(names.begin(), names.end(), [&](const auto& name) { return state.devices.contains(name); });
  return first_error(check_identifier("the request id", request.id()), check_device_names(names, 1),
                     check_device_names(request.attach_devices(), 0),
                     is_so(std::is_sorted(names.begin(), names.end()), "the list of devices", "a sorted list"),
                     is_so(known, "the list of devices", "devices that have a record"),
                     // Its place was a number that an event then took.
                     is_so(request.seq() != 0 && request.seq() < state.next_seq(), "the place in the queue",
                           "1 to the number of the last event"),
                     check_start(request.start()), check_priority(request.priority()), check_wait(request.wait_ms()),
                     check_duration(request.duration_s()),
                     check_text("the guest's name", request.guest_name(), kNameBytesMax),
                     check_text("the principal", request.principal(), kNameBytesMax));
}

Checked check(const record::Event& event) {
  return first_error(is_so(event.seq() != 0 && event.seq() < UINT64_MAX / 2, "the number", "1 to 2^63"),
                     check_text("the text", event.text(), kEventTextBytesMax));
}

Checked check(const record::Meta& meta) {
  return first_error(is_so(meta.format() != 0, "the format", "1"),
                     is_so(meta.epoch() <= kEpochMax, "the epoch", "at most " + std::to_string(kEpochMax)),
                     check_token("the greatest floor", meta.floor_max()));
}

}  // namespace

Result<void> check_state(const State& state) {
  const auto say = [](const std::string& key, const Checked& checked) -> Result<void> {
    if (checked) return {};
    return fail(ErrorCode::kRefused, "the record " + key + " in the store: " + checked.error().message +
                                         "; restore a backup, or see docs/store.md for how to leave it out");
  };
  const bool empty = state.devices.empty() && state.requests.empty() && state.hosts.empty() && state.events.empty() &&
                     state.members.empty() && state.tokens.empty();
  // A store that nobody has written to yet.
  if (empty && state.meta.ByteSizeLong() == 0) return {};
  if (auto ok = say(kMetaKey, check(state.meta)); !ok) return ok;
  for (const auto& [seq, event] : state.events) {
    if (auto ok = say(event_key(seq), check(event)); !ok) return ok;
  }
  for (const auto& [name, device] : state.devices) {
    if (auto ok = say(device_key(name), check_device(device)); !ok) return ok;
  }
  std::set<std::uint64_t> places;
  for (const auto& [id, request] : state.requests) {
    if (auto ok = say(request_key(id), check(request, state)); !ok) return ok;
    if (!places.insert(request.seq()).second)
      return say(request_key(id), bad_field("the place in the queue", "one request a place"));
  }
  for (const auto& [id, member] : state.members) {
    if (auto ok = say(member_key(id), check_member(member)); !ok) return ok;
  }
  for (const auto& [id, token] : state.tokens) {
    if (auto ok = say(token_key(id), check_join_token(token)); !ok) return ok;
  }
  for (const auto& [id, host] : state.hosts) {
    if (auto ok = say(host_key(id), check_host(host)); !ok) return ok;
  }
  return {};
}

}  // namespace usblease::lease
