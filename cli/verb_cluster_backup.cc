#include "cli/backup_file.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_cluster_backup(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_backup();
  const auto reply = ask(context, request, api::ServerFrame::kBackup);
  if (!reply) return tl::unexpected(reply.error());
  if (auto written = write_backup_file(invocation.words[0], reply->backup()); !written) return written;
  if (invocation.globals.json) return print_json(reply->backup().header());
  print_done(invocation.globals, std::to_string(reply->backup().header().records()) + " records of revision " +
                                     std::to_string(reply->backup().header().revision()) + " are in " +
                                     escape_text(invocation.words[0]) + "; it holds secrets: keep it safe");
  return {};
}

}  // namespace usblease::cli
