#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"

namespace usblease::cli {

Result<void> verb_host_info(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_host_info();
  const auto reply = ask(context, request, api::ServerFrame::kHostInfo);
  if (!reply) return tl::unexpected(reply.error());
  const auto& info = reply->host_info();
  if (invocation.globals.json) return print_json(info);
  Facts facts;
  facts.add("Host", info.host().id());
  facts.add_if("Name", info.host().name());
  facts.add("Boot", info.host().boot_id());
  facts.add("Machine", info.host().machine_uuid());
  facts.add("Version", info.host().version());
  facts.add("Libvirt", info.libvirt_connected() ? "connected" : "not connected");
  facts.add_if("Libvirt says", info.libvirt_detail());
  facts.add("Relays", std::to_string(info.relays()));
  Table rungs({"Rung", "Available", "Detail"});
  for (const auto& report : info.rungs()) {
    rungs.add({rung_text(report.rung()), report.available() ? "yes" : "no", report.detail()});
  }
  print(facts.format() + "\n" + rungs.format(!invocation.globals.quiet));
  return {};
}

}  // namespace usblease::cli
