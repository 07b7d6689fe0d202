#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_revoke(const Invocation& invocation, Context& context) {
  const std::uint64_t grace_s = invocation.grace_s.value_or(0);
  api::ClientFrame request;
  auto* revoke = request.mutable_revoke();
  revoke->set_device(invocation.devices[0]);
  revoke->set_grace_ms(static_cast<std::uint32_t>(grace_s * 1000));
  revoke->set_reason(invocation.reason);
  const auto reply = ask(context, request, api::ServerFrame::kRevoke);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->revoke());
  print_done(invocation.globals,
             invocation.devices[0] + ": token " + std::to_string(reply->revoke().token()) +
                 (grace_s == 0 ? " is being revoked now"
                               : " is being revoked; it works for another " + format_duration(grace_s)));
  return {};
}

}  // namespace usblease::cli
