#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"

namespace usblease::cli {

Result<void> verb_queue(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_queue()->set_device(invocation.devices[0]);
  const auto reply = ask(context, request, api::ServerFrame::kQueue);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->queue());
  print(format_queue(reply->queue().requests(), !invocation.globals.quiet));
  return {};
}

}  // namespace usblease::cli
