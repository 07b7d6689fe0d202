#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_rotate(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_rotate();
  const auto reply = ask(context, request, api::ServerFrame::kClusterRotate);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->cluster_rotate());
  print_done(invocation.globals, std::to_string(reply->cluster_rotate().hosts()) +
                                     " host(s) get new certificates, one after the other; `usblease cluster status` "
                                     "shows who waits");
  return {};
}

}  // namespace usblease::cli
