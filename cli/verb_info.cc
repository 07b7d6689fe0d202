#include <cstdio>

#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"
#include "common/boottime.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

std::string usb_id(const record::Identity& identity) {
  if (identity.vendor() == 0 && identity.product() == 0) return "";
  char text[32];
  std::snprintf(text, sizeof text, "%04x:%04x", identity.vendor() & 0xFFFFU, identity.product() & 0xFFFFU);
  return text;
}

std::string kind_name(record::DeviceKind kind) {
  if (kind == record::DEVICE_KIND_ENDPOINT) return "usbredir endpoint";
  if (kind == record::DEVICE_KIND_USB) return "local USB";
  return "";
}

void add_home(Facts* facts, const record::Presence& home) {
  const auto& instance = home.instance();
  const auto& identity = home.identity();
  facts->add("Home", instance.host_id() + (home.present() ? "" : " (absent)"));
  facts->add_if(home.present() ? "Where" : "Absent because", home.detail());
  if (home.present()) facts->add("Instance", std::to_string(instance.counter()) + " of boot " + instance.boot_id());
  facts->add_if("Kind", kind_name(identity.kind()));
  facts->add_if("Address", identity.address());
  facts->add_if("USB id", usb_id(identity));
  facts->add_if("Serial", identity.serial());
}

// `deadline_ns`: 0 when the device is not armed on this host.
void add_lease(Facts* facts, const record::Lease& lease, std::uint64_t deadline_ns) {
  facts->add("Guest", lease.guest_name());
  facts->add("Guest UUID", lease.start().guest_uuid());
  facts->add("Guest's host", lease.start().host_id());
  facts->add("Token", std::to_string(lease.token()));
  facts->add("Phase", phase_name(lease.phase()));
  facts->add("Granted", format_unix_time(lease.granted_unix_s()));
  facts->add("Until", lease.until_unix_s() == 0 ? "no end" : format_unix_time(lease.until_unix_s()));
  facts->add_if("Asked for by", lease.principal());
  facts->add_if("Ends because", lease.end_reason());
  facts->add_if("Ended by", lease.ended_by());
  if (lease.phase() == record::PHASE_REVOKING) facts->add("Grace", format_ms(lease.grace_ms()));
  if (deadline_ns != 0) {
    const std::uint64_t now_ns = boottime_now_ns();
    facts->add("Deadline", deadline_ns > now_ns ? "in " + format_ms((deadline_ns - now_ns) / 1'000'000)
                                                : "passed: the device has stopped");
  }
}

void add_policy(Facts* facts, const record::Policy& policy, std::uint32_t isolation_ms) {
  std::string guests;
  for (const auto& guest : policy.guests()) guests += (guests.empty() ? "" : ", ") + guest;
  facts->add("Allowed guests", guests.empty() ? "any" : guests);
  facts->add("Longest lease", duration_or(policy.until_max_s(), "no limit"));
  facts->add("Isolation", isolation_ms == 0 ? "the session's ttl" : format_ms(isolation_ms));
  facts->add("Weakest fence", policy.min_rung() == record::RUNG_UNSPECIFIED ? "any" : rung_text(policy.min_rung()));
  facts->add("Roams", policy.roams() ? "yes" : "no");
}

}  // namespace

Result<void> verb_info(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_device_info()->set_device(invocation.devices[0]);
  const auto reply = ask(context, request, api::ServerFrame::kDeviceInfo);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->device_info());
  const auto& view = reply->device_info().device();
  const auto& device = view.device();
  Facts facts;
  facts.add("Device", device.name());
  facts.add("State", view.state());
  for (const auto& home : device.homes()) add_home(&facts, home);
  if (device.has_lease()) add_lease(&facts, device.lease(), view.deadline_boottime_ns());
  facts.add("Last token", std::to_string(device.last_token()));
  add_policy(&facts, device.policy(), view.isolation_ms());
  facts.add("Queue", std::to_string(view.queue_length()));
  print(facts.format());
  if (reply->device_info().queue_size() > 0) {
    print("\n" + format_queue(reply->device_info().queue(), !invocation.globals.quiet));
  }
  return {};
}

}  // namespace usblease::cli
