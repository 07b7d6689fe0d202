#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"
#include "common/boottime.h"

namespace usblease::cli {

Result<void> verb_list(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_list_devices();
  const auto reply = ask(context, request, api::ServerFrame::kListDevices);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->list_devices());
  Table table({"Device", "State", "Guest", "Host", "Token", "Until", "Queue"});
  const std::uint64_t now_unix_s = wall_clock_unix_s();
  for (const auto& view : reply->list_devices().devices()) {
    const auto& device = view.device();
    const auto& lease = device.lease();
    table.add({device.name(), view.state(), lease.guest_name(), home_names(device),
               device.has_lease() ? std::to_string(lease.token()) : "",
               device.has_lease() ? format_until(lease.until_unix_s(), now_unix_s) : "",
               std::to_string(view.queue_length())});
  }
  print(table.format(!invocation.globals.quiet));
  return {};
}

}  // namespace usblease::cli
