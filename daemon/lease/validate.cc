#include "daemon/lease/validate.h"

#include <algorithm>
#include <string>

#include "daemon/lease/check_state.h"
#include "daemon/lease/fields.h"
#include "daemon/lease/keys.h"

namespace usblease::lease {
namespace {

Checked check(const command::Floor& floor) {
  // What was armed and not fenced names the instance that is still to be confirmed.
  if (floor.armed() > floor.fenced()) {
    if (auto checked = check_uuid("a floor's boot id", floor.boot_id()); !checked) return checked;
  }
  return first_error(check_leased_name(floor.device()), check_token("a floor's armed token", floor.armed()),
                     check_token("a floor's fenced token", floor.fenced()));
}

Checked check(const command::RegisterHost& c) {
  if (c.floors_size() > static_cast<int>(kDevicesPerMessageMax)) return bad_field("the list of floors", "at most 4096");
  for (const auto& floor : c.floors()) {
    if (auto checked = check(floor); !checked) return checked;
  }
  return check_host(c.host());
}

Checked check(const command::ReportDevice& c) {
  return first_error(check_device_name(c.device()), check_presence(c.presence()), check_policy(c.policy()));
}

Checked check(const command::ForgetDevice& c) {
  return first_error(check_device_name(c.device()), check_identifier("the host", c.host_id()));
}

// A lock is asked for alone, by no guest that could migrate with it, and nobody plugs it in.
Checked check_lock_alone(const command::Acquire& c) {
  const auto& names = c.devices();
  if (std::none_of(names.begin(), names.end(), [](const auto& name) { return is_lock(name); })) return {};
  if (names.size() > 1 || !c.attach_devices().empty() || c.reservation())
    return bad_field("the list of devices", "devices, or one lock alone, which is not attached to a guest");
  return {};
}

Checked check(const command::Acquire& c) {
  return first_error(check_identifier("the request id", c.request_id()), check_start(c.start()),
                     check_device_names(c.devices(), 1), check_device_names(c.attach_devices(), 0), check_lock_alone(c),
                     check_priority(c.priority()), check_wait(c.wait_ms()), check_duration(c.duration_s()),
                     check_text("the guest's name", c.guest_name(), kNameBytesMax),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::CancelRequest& c) {
  // It is what the waiting client is told, so it may not say that the client got what it waits for.
  if (c.code() < command::CODE_UNSPECIFIED || c.code() > command::CODE_INTERNAL || c.code() == command::CODE_OK ||
      c.code() == command::CODE_QUEUED) {
    return bad_field("the outcome of the cancelled request", "an outcome that is an end without a grant");
  }
  return first_error(check_identifier("the request id", c.request_id()),
                     check_text("the reason", c.reason(), kReasonBytesMax));
}

Checked check(const command::Release& c) {
  return first_error(
      check_start(c.start()), check_device_names(c.devices(), 0), check_text("the request id", c.request_id(), 64),
      check_text("the reason", c.reason(), kReasonBytesMax), check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::Revoke& c) {
  if (c.grace_ms() > kGraceMaxMs) return bad_field("the grace", "at most 30 days");
  return first_error(check_leased_name(c.device()), check_text("the reason", c.reason(), kReasonBytesMax),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::GraceOver& c) { return check_leased_name(c.device()); }
Checked check(const command::UntilOver& c) { return check_leased_name(c.device()); }

Checked check(const command::Extend& c) {
  return first_error(check_leased_name(c.device()), check_duration(c.duration_s()),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::ConfirmFenced& c) {
  return first_error(check_leased_name(c.device()), check_instance(c.instance()),
                     check_text("the evidence", c.how(), kReasonBytesMax));
}

Checked check(const command::HostGone& c) {
  return first_error(check_identifier("the host", c.host_id()), check_uuid("the boot id", c.boot_id()));
}

Checked check(const command::DeclareDead& c) {
  return first_error(check_identifier("the host", c.host_id()),
                     c.boot_id().empty() ? Checked() : check_uuid("the boot id", c.boot_id()),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::NewEpoch& c) {
  if (c.epoch() > kEpochMax) return bad_field("the epoch", "at most " + std::to_string(kEpochMax));
  return check_text("the principal", c.principal(), kNameBytesMax);
}

Checked check(const command::FoundCluster& c) {
  return first_error(check_member(c.member()), check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::AddHost& c) {
  return first_error(check_join_token(c.token()), check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::Join& c) {
  return first_error(check_hex("the token's id", c.token_id(), 16),
                     check_hex("the hash of the secret", c.secret_sha256(), 64), check_member(c.member()));
}

Checked check(const command::UpdateMember& c) {
  return first_error(check_identifier("the host", c.host_id()), check_addresses(c.addresses()),
                     check_store_member(c.store()));
}

Checked check(const command::RemoveHost& c) {
  return first_error(check_identifier("the host", c.host_id()),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::DrainHost& c) {
  if (c.grace_ms() > kGraceMaxMs) return bad_field("the grace", "at most 30 days");
  return first_error(check_identifier("the host", c.host_id()),
                     check_text("the principal", c.principal(), kNameBytesMax));
}

Checked check(const command::RotateCertificates& c) {
  return check_text("the principal", c.principal(), kNameBytesMax);
}

Checked check(const command::NoteCertificate& c) {
  return first_error(check_identifier("the host", c.host_id()), check_certificate(c.certificate()));
}

Checked check(const command::NoteRefusals& c) {
  if (c.calls() == 0) return bad_field("the number of calls", "at least 1");
  return first_error(check_device_name(c.device()), check_identifier("the host", c.host_id()));
}

Checked check(const command::Restore& c) {
  if (c.devices_size() > static_cast<int>(kDevicesPerMessageMax))
    return bad_field("the list of devices", "at most 4096 in one part");
  if (c.hosts_size() > static_cast<int>(kHostsMax)) return bad_field("the list of hosts", "at most 1024");
  if (c.end() && (c.begin() || c.devices_size() + c.hosts_size() > 0))
    return bad_field("the last part of the backup", "a part that only ends");
  for (const auto& device : c.devices()) {
    if (auto checked = check_device(device); !checked) return checked;
  }
  for (const auto& host : c.hosts()) {
    if (auto checked = check_host(host); !checked) return checked;
  }
  if (c.epoch() > kEpochMax) return bad_field("the epoch", "at most " + std::to_string(kEpochMax));
  return check_text("the principal", c.principal(), kNameBytesMax);
}

}  // namespace

Result<void> validate(const command::Command& command) {
  using Body = command::Command::BodyCase;
  switch (command.body_case()) {
    case Body::kRegisterHost:
      return check(command.register_host());
    case Body::kReportDevice:
      return check(command.report_device());
    case Body::kForgetDevice:
      return check(command.forget_device());
    case Body::kAcquire:
      return check(command.acquire());
    case Body::kCancelRequest:
      return check(command.cancel_request());
    case Body::kRelease:
      return check(command.release());
    case Body::kRevoke:
      return check(command.revoke());
    case Body::kGraceOver:
      return check(command.grace_over());
    case Body::kUntilOver:
      return check(command.until_over());
    case Body::kExtend:
      return check(command.extend());
    case Body::kConfirmFenced:
      return check(command.confirm_fenced());
    case Body::kHostGone:
      return check(command.host_gone());
    case Body::kDeclareDead:
      return check(command.declare_dead());
    case Body::kNewEpoch:
      return check(command.new_epoch());
    case Body::kFoundCluster:
      return check(command.found_cluster());
    case Body::kAddHost:
      return check(command.add_host());
    case Body::kJoin:
      return check(command.join());
    case Body::kUpdateMember:
      return check(command.update_member());
    case Body::kRemoveHost:
      return check(command.remove_host());
    case Body::kDrainHost:
      return check(command.drain_host());
    case Body::kRestore:
      return check(command.restore());
    case Body::kRotateCertificates:
      return check(command.rotate_certificates());
    case Body::kNoteCertificate:
      return check(command.note_certificate());
    case Body::kNoteRefusals:
      return check(command.note_refusals());
    case Body::BODY_NOT_SET:
      break;
  }
  return bad_field("the command", "the kinds that this version knows");
}

}  // namespace usblease::lease
