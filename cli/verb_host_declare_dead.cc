#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_host_declare_dead(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_declare_dead()->set_host_id(invocation.host);
  const auto reply = ask(context, request, api::ServerFrame::kDeclareDead);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->declare_dead());
  print_done(invocation.globals, invocation.host + " is declared dead: boot " + reply->declare_dead().boot_id() +
                                     " is over for good, and what it held is free");
  return {};
}

}  // namespace usblease::cli
