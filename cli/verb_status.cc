#include "cli/connection.h"
#include "cli/output.h"
#include "cli/views.h"

namespace usblease::cli {

Result<void> verb_status(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_status();
  const auto reply = ask(context, request, api::ServerFrame::kStatusReply);
  if (!reply) return tl::unexpected(reply.error());
  const auto& status = reply->status_reply();
  if (invocation.globals.json) return print_json(status);
  Facts facts;
  facts.add("Cluster", status.cluster_id());
  facts.add("Coordinator", status.coordinator().empty() ? "none: nothing is granted now" : status.coordinator());
  facts.add("Term", std::to_string(status.term()));
  facts.add("Epoch", std::to_string(status.epoch()));
  facts.add("Store", status.store());
  facts.add("Store's health", status.store_health());
  facts.add("Store's revision", std::to_string(status.store_revision()));
  facts.add_if("Store is behind", status.behind());
  facts.add("Devices", std::to_string(status.devices()));
  facts.add("Leases", std::to_string(status.leases()));
  facts.add("Requests", std::to_string(status.requests()));
  facts.add("Hosts", std::to_string(status.hosts()));
  for (const auto& session : status.sessions()) {
    facts.add("Session of " + session.host_id(), session.gone() ? "gone"
                                                 : session.answered()
                                                     ? "answered " + format_ms(session.answered_ms_ago()) + " ago"
                                                     : "not answered since the election");
  }
  facts.add("Session's ttl", format_ms(status.ttl_ms()));
  facts.add("Version", status.version());
  print(facts.format());
  return {};
}

}  // namespace usblease::cli
