#include "cli/connection.h"
#include "cli/output.h"

namespace usblease::cli {

// `cluster remove` of the host that this runs on.
Result<void> verb_cluster_leave(const Invocation& invocation, Context& context) {
  api::ClientFrame who;
  who.mutable_host_info();
  const auto self = ask(context, who, api::ServerFrame::kHostInfo);
  if (!self) return tl::unexpected(self.error());
  Invocation remove = invocation;
  remove.host = self->host_info().host().id();
  return verb_cluster_remove(remove, context);
}

}  // namespace usblease::cli
