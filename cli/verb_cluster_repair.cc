#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_repair(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_repair();
  const auto reply = ask(context, request, api::ServerFrame::kClusterRepair);
  if (!reply) return tl::unexpected(reply.error());
  const auto& repair = reply->cluster_repair();
  if (invocation.globals.json) return print_json(repair);
  print_done(invocation.globals, "epoch " + std::to_string(repair.epoch()) + " has begun; " +
                                     std::to_string(repair.leases_left()) +
                                     " lease(s) are being fenced, then devices are granted again");
  return {};
}

}  // namespace usblease::cli
