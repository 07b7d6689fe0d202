#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_detach(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_detach()->set_guest(invocation.guest);
  request.mutable_detach()->set_device(invocation.devices[0]);
  const auto reply = ask(context, request, api::ServerFrame::kDetach);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->detach());
  print_done(invocation.globals, invocation.devices[0] + " detached from " + escape_text(invocation.guest) +
                                     "; token " + std::to_string(reply->detach().token()) + " has ended");
  return {};
}

}  // namespace usblease::cli
