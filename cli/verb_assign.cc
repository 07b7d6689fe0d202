#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_assign(const Invocation& invocation, Context& context) {
  const std::string& device = invocation.devices[0];
  api::ClientFrame request;
  auto* assign = request.mutable_assign();
  assign->set_guest(invocation.guest);
  assign->set_device(device);
  assign->set_required(!invocation.optional);
  assign->set_wait_s(static_cast<std::uint32_t>(invocation.wait_s.value_or(0)));
  const auto reply = ask(context, request, api::ServerFrame::kAssign);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->assign());
  const std::string guest = escape_text(invocation.guest);
  if (!reply->assign().changed()) {
    print_done(invocation.globals, device + " was assigned to " + guest + " in this way already");
    return {};
  }
  print_done(invocation.globals, device + " assigned to " + guest + "; it is leased at each start");
  if (reply->assign().running()) {
    print_done(invocation.globals,
               guest + " is running: to have it now, `usblease attach " + guest + " " + device + "`");
  }
  return {};
}

}  // namespace usblease::cli
