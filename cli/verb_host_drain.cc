#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

Result<api::ServerFrame> ask_drain(const Invocation& invocation, Context& context, bool undo) {
  api::ClientFrame request;
  auto* drain = request.mutable_drain();
  drain->set_host_id(invocation.host);
  drain->set_undo(undo);
  drain->set_grace_ms(static_cast<std::uint32_t>(invocation.grace_s.value_or(0) * 1000));
  return ask(context, request, api::ServerFrame::kDrain);
}

}  // namespace

Result<void> verb_host_drain(const Invocation& invocation, Context& context) {
  const auto reply = ask_drain(invocation, context, false);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->drain());
  const std::uint32_t left = reply->drain().leases_left();
  print_done(invocation.globals, left == 0 ? invocation.host + " is empty; nothing new is granted to it"
                                           : invocation.host + " is being drained: " + std::to_string(left) +
                                                 " lease(s) left; `usblease cluster status` shows when it is empty");
  return {};
}

Result<void> verb_host_undrain(const Invocation& invocation, Context& context) {
  const auto reply = ask_drain(invocation, context, true);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->drain());
  print_done(invocation.globals, invocation.host + " takes part again");
  return {};
}

}  // namespace usblease::cli
