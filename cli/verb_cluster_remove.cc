#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_remove(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_remove()->set_host_id(invocation.host);
  const auto reply = ask(context, request, api::ServerFrame::kClusterRemove);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->cluster_remove());
  const std::uint32_t left = reply->cluster_remove().leases_left();
  print_done(invocation.globals, left == 0
                                     ? invocation.host + " is no longer in the cluster"
                                     : invocation.host + " leaves when its " + std::to_string(left) +
                                           " lease(s) are fenced; if it is switched off: usblease host declare-dead " +
                                           invocation.host + " --i-have-powered-it-off");
  return {};
}

}  // namespace usblease::cli
