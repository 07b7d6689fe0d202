#include "daemon/lease/fields.h"

#include <algorithm>
#include <set>

#include "daemon/lease/keys.h"

namespace usblease::lease {
namespace {

constexpr std::string_view kLowerHex = "0123456789abcdef";

bool all_of(std::string_view text, std::string_view allowed) {
  return text.find_first_not_of(allowed) == std::string_view::npos;
}

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

// Bytes of the well-formed sequence that `text` begins with (RFC 3629); 0: it is not well formed.
std::size_t sequence_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return 0;
  for (std::size_t i = 1; i < bytes; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  const bool too_long = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) > 0x9F;
  const bool too_great = lead == 0xF4 && byte(1) > 0x8F;
  return too_long || surrogate || too_great ? 0 : bytes;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t bytes = sequence_bytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

// A message is stored as it came, with fields that this version does not know: they count too.
Checked check_size(std::string_view what, const google::protobuf::MessageLite& message, std::size_t bytes_max) {
  if (message.ByteSizeLong() > bytes_max) return bad_field(what, "at most " + std::to_string(bytes_max) + " bytes");
  return {};
}

}  // namespace

Checked bad_field(std::string_view field, const std::string& allowed) {
  return fail(ErrorCode::kBadInput, std::string(field) + " is not valid; allowed: " + allowed);
}

Checked check_device_name(std::string_view name) {
  if (name.empty() || name.size() > 48 || name[0] == '-' || name[0] == '_' ||
      !all_of(name, "abcdefghijklmnopqrstuvwxyz0123456789_-")) {
    return bad_field("the device name", "1 to 48 of a-z 0-9 _ -, beginning with a letter or digit");
  }
  return {};
}

Checked check_leased_name(std::string_view name) {
  return check_device_name(is_lock(name) ? name.substr(kLockPrefix.size()) : name);
}

Checked check_identifier(std::string_view field, std::string_view text) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (text.empty() || text.size() > 64 || text[0] == '.' || text[0] == '-' || !all_of(text, kAllowed))
    return bad_field(field, "1 to 64 of A-Z a-z 0-9 . _ -, not beginning with . or -");
  return {};
}

Checked check_uuid(std::string_view field, std::string_view text) {
  bool valid = text.size() == 36;
  for (std::size_t i = 0; valid && i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    valid = dash ? text[i] == '-' : kLowerHex.find(text[i]) != std::string_view::npos;
  }
  return valid ? Checked() : bad_field(field, "a UUID in lower case");
}

Checked check_text(std::string_view field, std::string_view text, std::size_t bytes_max) {
  if (text.size() > bytes_max || !is_utf8(text))
    return bad_field(field, "at most " + std::to_string(bytes_max) + " bytes of UTF-8");
  return {};
}

Checked check_token(std::string_view field, std::uint64_t token) {
  if (token > kTokenMax) return bad_field(field, "at most " + std::to_string(kTokenMax));
  return {};
}

Checked check_start(const record::Start& start) {
  if (start.nonce().size() != 16 || !all_of(start.nonce(), kLowerHex))
    return bad_field("the start's nonce", "16 lower-case hex digits");
  return first_error(check_uuid("the guest's UUID", start.guest_uuid()),
                     check_identifier("the start's host", start.host_id()),
                     check_uuid("the start's boot id", start.boot_id()), check_size("the start", start, 1024));
}

Checked check_instance(const record::Instance& instance) {
  return first_error(check_identifier("the home", instance.host_id()),
                     check_uuid("the instance's boot id", instance.boot_id()));
}

Checked check_policy(const record::Policy& policy) {
  if (policy.guests_size() > static_cast<int>(kPolicyGuestsMax)) return bad_field("the policy", "at most 256 guests");
  for (const auto& guest : policy.guests()) {
    if (auto checked = check_text("a guest of the policy", guest, kNameBytesMax); !checked) return checked;
  }
  if (policy.until_max_s() > kDurationMaxS) return bad_field("until_max of the policy", "at most 10 years");
  if (policy.isolation_ms() > kIsolationMaxMs) return bad_field("the isolation of the policy", "at most one hour");
  if (policy.min_rung() < record::RUNG_UNSPECIFIED || policy.min_rung() > record::RUNG_WATCHDOG)
    return bad_field("the least rung of the policy", "0 to 7");
  return check_size("the policy", policy, kPolicyBytesMax);
}

Checked check_presence(const record::Presence& presence) {
  const record::Identity& identity = presence.identity();
  if (identity.kind() < record::DEVICE_KIND_UNSPECIFIED || identity.kind() > record::DEVICE_KIND_USB)
    return bad_field("the device's kind", "0 to 2");
  if (identity.vendor() > 0xFFFF || identity.product() > 0xFFFF)
    return bad_field("the device's vendor and product", "at most 0xffff");
  return first_error(check_instance(presence.instance()), check_text("the address", identity.address(), 512),
                     check_text("the serial", identity.serial(), kNameBytesMax),
                     check_text("the detail", presence.detail(), kReasonBytesMax),
                     check_size("the presence", presence, 2048));
}

Checked check_host(const record::Host& host) {
  if (host.rungs_size() > 16) return bad_field("the list of rungs", "at most 16");
  for (const int rung : host.rungs()) {
    if (rung < record::RUNG_UNSPECIFIED || rung > record::RUNG_WATCHDOG) return bad_field("a rung", "0 to 7");
  }
  if (host.barred_boot_ids_size() > static_cast<int>(kBarredBootIdsMax))
    return bad_field("the list of barred boot ids", "at most 64");
  for (const auto& boot_id : host.barred_boot_ids()) {
    if (auto checked = check_uuid("a barred boot id", boot_id); !checked) return checked;
  }
  return first_error(check_identifier("the host", host.id()), check_uuid("the boot id", host.boot_id()),
                     check_text("the host's name", host.name(), kNameBytesMax),
                     check_text("the machine's UUID", host.machine_uuid(), 64),
                     check_text("the version", host.version(), 64), check_size("the host", host, 8192));
}

Checked check_hex(std::string_view field, std::string_view text, std::size_t digits) {
  return text.size() == digits && all_of(text, kLowerHex)
             ? Checked()
             : bad_field(field, std::to_string(digits) + " lower-case hex digits");
}

Checked check_addresses(const google::protobuf::RepeatedPtrField<std::string>& addresses) {
  if (addresses.size() > static_cast<int>(kAddressesMax)) return bad_field("the list of addresses", "at most 8");
  for (const auto& address : addresses) {
    if (address.empty()) return bad_field("an address", "HOST:PORT");
    if (auto checked = check_text("an address", address, kNameBytesMax); !checked) return checked;
  }
  return {};
}

Checked check_store_member(const record::StoreMember& member) {
  if (member.role() < record::STORE_ROLE_NONE || member.role() > record::STORE_ROLE_VOTER)
    return bad_field("the store member's role", "0 to 2");
  return first_error(check_text("the store member's client URL", member.client_url(), kNameBytesMax),
                     check_text("the store member's peer URL", member.peer_url(), kNameBytesMax));
}

Checked check_certificate(const record::Certificate& certificate) {
  return check_hex("the serial number of a certificate", certificate.serial(), 32);
}

Checked check_member(const record::Member& member) {
  if (member.certificates_size() > 2 || member.revoked_size() > static_cast<int>(kRevokedMax))
    return bad_field("the list of certificates", "at most 2, and 32 that are revoked");
  for (const auto* list : {&member.certificates(), &member.revoked()}) {
    for (const auto& certificate : *list) {
      if (auto checked = check_certificate(certificate); !checked) return checked;
    }
  }
  if (member.standing() < record::STANDING_UNSPECIFIED || member.standing() > record::STANDING_REMOVED)
    return bad_field("how the host stands in the cluster", "0 to 3");
  return first_error(check_identifier("the host", member.host_id()), check_addresses(member.addresses()),
                     check_store_member(member.store()), check_hex("the hash of its key", member.key_sha256(), 64),
                     check_size("the member", member, 8192));
}

Checked check_join_token(const record::JoinToken& token) {
  return first_error(check_hex("the token's id", token.id(), 16), check_identifier("the host", token.host_id()),
                     check_hex("the hash of the secret", token.secret_sha256(), 64),
                     token.redeemed_by().empty() ? Checked() : check_hex("who used the token", token.redeemed_by(), 64),
                     check_size("the join token", token, 1024));
}

Checked check_priority(std::int32_t priority) {
  if (priority < -kPriorityMax || priority > kPriorityMax) return bad_field("the priority", "-100 to 100");
  return {};
}

Checked check_wait(std::uint32_t wait_ms) {
  return wait_ms > kWaitMaxMs ? bad_field("the wait", "at most 30 days") : Checked();
}

Checked check_duration(std::uint64_t duration_s) {
  return duration_s > kDurationMaxS ? bad_field("the duration", "at most 10 years") : Checked();
}

Checked check_device_names(const google::protobuf::RepeatedPtrField<std::string>& names, int least) {
  if (names.size() < least || names.size() > static_cast<int>(kDevicesPerRequestMax))
    return bad_field("the list of devices", std::to_string(least) + " to 16 devices");
  std::set<std::string_view> seen;
  for (const auto& name : names) {
    if (auto checked = check_leased_name(name); !checked) return checked;
    if (!seen.insert(name).second) return bad_field("the list of devices", "each device once, not " + name + " twice");
  }
  return {};
}

std::string cut_text(std::string text, std::size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  while (bytes_max > 0 && is_continuation(text[bytes_max])) --bytes_max;
  text.resize(bytes_max);
  return text;
}

}  // namespace usblease::lease
