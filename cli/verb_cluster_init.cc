#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_init(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  for (const auto& address : invocation.addresses) request.mutable_cluster_init()->add_addresses(address);
  request.mutable_cluster_init();
  const auto reply = ask(context, request, api::ServerFrame::kClusterInit);
  if (!reply) return tl::unexpected(reply.error());
  const auto& init = reply->cluster_init();
  if (invocation.globals.json) return print_json(init);
  print_done(invocation.globals, init.host_id() + " is the first host of the cluster " + init.cluster_id() +
                                     "; what the store held before is kept in " + init.archived() +
                                     ". Next: usblease cluster add HOST");
  return {};
}

}  // namespace usblease::cli
