#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_transfer(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_transfer()->set_host_id(invocation.host);
  const auto reply = ask(context, request, api::ServerFrame::kClusterTransfer);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->cluster_transfer());
  print_done(invocation.globals, invocation.host + " is the coordinator now");
  return {};
}

}  // namespace usblease::cli
