#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_extend(const Invocation& invocation, Context& context) {
  const std::uint64_t duration_s = invocation.for_s.value_or(0);
  api::ClientFrame request;
  request.mutable_extend()->set_device(invocation.devices[0]);
  request.mutable_extend()->set_duration_s(duration_s);
  const auto reply = ask(context, request, api::ServerFrame::kExtend);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->extend());
  print_done(invocation.globals,
             invocation.devices[0] + ": token " + std::to_string(reply->extend().token()) +
                 (duration_s == 0 ? " has no end any more" : " ends in " + format_duration(duration_s)));
  return {};
}

}  // namespace usblease::cli
