#include "daemon/host/device_home.h"

#include <algorithm>

#include "common/log.h"

namespace usblease::host {
namespace {

record::Policy policy_of(const DeviceConfig& config) {
  record::Policy policy;
  for (const auto& guest : config.guests) policy.add_guests(guest);
  policy.set_until_max_s(config.until_max_s);
  policy.set_isolation_ms(config.isolation_ms);
  policy.set_min_rung(static_cast<record::Rung>(config.min_rung));
  return policy;
}

}  // namespace

DeviceHome::DeviceHome(DeviceConfig config, HomeContext& context, HomeRole role)
    : config_(std::move(config)),
      context_(context),
      retired_(role == HomeRole::kRetired),
      policy_(policy_of(config_)) {}

std::uint32_t DeviceHome::isolation_ms() const { return std::max(config_.isolation_ms, context_.ttl_ms); }

void DeviceHome::adopt_instance(std::uint64_t counter) {
  instance_.set_host_id(context_.session.self().id());
  instance_.set_boot_id(context_.session.self().boot_id());
  instance_.set_counter(counter);
}

void DeviceHome::set_known(Known known, const std::string& detail) {
  if (known != known_) {
    log::info(std::string(noun()) + (known == Known::kPresent ? " is there" : " is not there"),
              {{"DEVICE", config_.name}, {"ERROR", detail}});
  }
  known_ = known;
  detail_ = detail.substr(0, 512);
  send_report();
}

void DeviceHome::send_report() {
  if (retired_ || !context_.session.registered()) return;
  command::Command command;
  command::ReportDevice& c = *command.mutable_report_device();
  c.set_device(config_.name);
  *c.mutable_policy() = policy_;
  record::Presence& presence = *c.mutable_presence();
  *presence.mutable_instance() = instance_;
  presence.mutable_instance()->set_host_id(context_.session.self().id());
  if (presence.instance().boot_id().empty())
    presence.mutable_instance()->set_boot_id(context_.session.self().boot_id());
  presence.set_present(known_ == Known::kPresent);
  presence.set_detail(detail_);
  describe(*presence.mutable_identity());
  context_.link.submit(std::move(command), [this, alive = std::weak_ptr(alive_)](const command::Reply& reply) {
    if (alive.expired()) return;
    if (reply.status().code() == command::CODE_OK) return context_.reported(config_.name);
    log::warning("the coordinator did not take the report",
                 {{"DEVICE", config_.name}, {"ERROR", reply.status().message()}});
    report_retry_ = run_after(kConfirmRetryNs, [this] { send_report(); });
  });
}

bool DeviceHome::stands(std::uint64_t token) const {
  const record::Lease* l = lease();
  return !retired_ && l != nullptr && l->token() == token && l->phase() != record::PHASE_FENCING &&
         l->instance().counter() == instance_.counter() && l->instance().boot_id() == instance_.boot_id();
}

void DeviceHome::confirm(std::uint64_t token, const std::string& how) {
  confirming_ = token;
  dead_through_ = std::max(dead_through_, token);
  context_.home_file.record_fenced(
      config_.name, token, [this, alive = std::weak_ptr(alive_), token, how](const Result<void>& stored) {
        if (alive.expired()) return;
        confirming_ = 0;
        if (!stored) {
          // Not on disk, so not confirmed. What proves the end goes on waiting.
          log::error("cannot raise the floor",
                     {{"DEVICE", config_.name}, {"TOKEN", std::to_string(token)}, {"ERROR", stored.error().message}});
          confirm_retry_ = run_after(kConfirmRetryNs, [this, token, how] { confirm(token, how); });
          return;
        }
        fenced_on_disk(token);
        context_.session.disarm({config_.name, token});
        context_.pages.close(config_.name, token);
        submit_confirmation(token, how);
      });
}

void DeviceHome::submit_confirmation(std::uint64_t token, const std::string& how) {
  const bool known = lease() != nullptr && lease()->token() == token;
  if (!known && instance_.counter() == 0) return;  // the record is not here yet: on_record will see the floor
  command::Command command;
  command::ConfirmFenced& c = *command.mutable_confirm_fenced();
  c.set_device(config_.name);
  c.set_token(token);
  c.set_how(how);
  *c.mutable_instance() = known ? lease()->instance() : instance_;
  context_.link.submit(
      std::move(command), [this, alive = std::weak_ptr(alive_), token, how](const command::Reply& reply) {
        if (alive.expired() || reply.status().code() != command::CODE_UNAVAILABLE) return;
        confirm_retry_ = run_after(kConfirmRetryNs, [this, token, how] { submit_confirmation(token, how); });
      });
}

}  // namespace usblease::host
