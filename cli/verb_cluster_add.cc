#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_cluster_add(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_cluster_add()->set_host_id(invocation.host);
  request.mutable_cluster_add()->set_valid_s(invocation.valid_s.value_or(0));
  const auto reply = ask(context, request, api::ServerFrame::kClusterAdd);
  if (!reply) return tl::unexpected(reply.error());
  const auto& add = reply->cluster_add();
  if (invocation.globals.json) return print_json(add);
  print_done(invocation.globals,
             "# On " + invocation.host + ", once, until " + format_unix_time(add.expires_unix_s()) + ":");
  print((invocation.globals.quiet ? "" : "usblease cluster join ") + add.token() + "\n");
  return {};
}

}  // namespace usblease::cli
