#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "cli/connection.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/views.h"
#include "common/boottime.h"

namespace usblease::cli {

namespace {

// What one home has, by where it is: "1-2.4", an address, "-" when it is not plugged in.
using Homes = std::map<std::string, std::vector<std::vector<std::string>>>;

Homes by_home(const api::ListDevicesReply& reply) {
  Homes homes;
  for (const auto& view : reply.devices()) {
    const std::string& name = view.device().name();
    for (const auto& home : view.device().homes()) {
      auto& rows = homes[home.instance().host_id()];
      if (home.present()) {
        rows.push_back({"+- " + home.identity().address(), name, view.state(), view.device().lease().guest_name()});
      } else {
        rows.push_back({"+- -", name, "absent", ""});
      }
    }
    if (view.device().homes().empty()) homes["no home"].push_back({"+- -", name, view.state(), ""});
  }
  for (auto& [host, rows] : homes) std::sort(rows.begin(), rows.end());
  return homes;
}

void print_tree(const Homes& homes) {
  for (const auto& [host, rows] : homes) {
    Table table({"Where", "Device", "State", "Guest"});
    for (const auto& row : rows) table.add(row);
    print(" " + cell(host) + "\n" + table.format(false));
  }
}

}  // namespace

Result<void> verb_list(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_list_devices();
  const auto reply = ask(context, request, api::ServerFrame::kListDevices);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->list_devices());
  if (invocation.tree) {
    print_tree(by_home(reply->list_devices()));
    return {};
  }
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
