#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

Result<void> verb_cluster_join(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_join()->set_token(invocation.words[0]);
  const auto reply = ask(context, request, api::ServerFrame::kClusterJoin);
  if (!reply) return tl::unexpected(reply.error());
  const auto& join = reply->cluster_join();
  if (invocation.globals.json) return print_json(join);
  std::string sentence = join.host_id() + " has joined the cluster " + join.cluster_id();
  sentence += join.store_member() ? ", with a store member" : "";
  if (!join.archived().empty()) sentence += "; what its own store held is kept in " + join.archived();
  print_done(invocation.globals, sentence);
  return {};
}

}  // namespace usblease::cli
