#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_unassign(const Invocation& invocation, Context& context) {
  const std::string& device = invocation.devices[0];
  api::ClientFrame request;
  auto* assign = request.mutable_assign();
  assign->set_guest(invocation.guest);
  assign->set_device(device);
  assign->set_remove(true);
  const auto reply = ask(context, request, api::ServerFrame::kAssign);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->assign());
  const std::string guest = escape_text(invocation.guest);
  print_done(invocation.globals, reply->assign().changed() ? device + " is no longer assigned to " + guest
                                                           : device + " was not assigned to " + guest);
  if (reply->assign().changed() && reply->assign().running()) {
    print_done(invocation.globals, guest + " is running and keeps what it has: to end that, `usblease detach " + guest +
                                       " " + device + "`");
  }
  return {};
}

}  // namespace usblease::cli
