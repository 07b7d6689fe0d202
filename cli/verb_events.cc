#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

std::string event_line(const record::Event& event) {
  std::string out = format_unix_time(event.unix_s()) + "  " + cell(event.kind());
  const auto add = [&out](const char* name, const std::string& value) {
    if (!value.empty()) out += std::string("  ") + name + " " + escape_text(value);
  };
  add("device", event.device());
  add("guest", event.guest());
  add("host", event.host());
  if (event.token() != 0) add("token", std::to_string(event.token()));
  add("by", event.principal());
  if (!event.text().empty()) out += ": " + escape_text(event.text());
  return out + "\n";
}

// Each event at once, so that a pipe sees it when it happens.
Result<void> print_events(const api::EventsReply& reply, bool json) {
  for (const auto& event : reply.events()) {
    if (!json) {
      print(event_line(event));
    } else if (auto printed = print_json(event); !printed) {
      return printed;
    }
  }
  return flush_output();
}

Result<void> follow(const api::ClientFrame& request, Context& context) {
  const bool json = context.globals.json;
  auto connection =
      Connection::open(context.globals.socket_path, context.interrupt, deadline_after_s(context.globals.timeout_s));
  if (!connection) return tl::unexpected(connection.error());
  const auto show = [json](const api::ServerFrame& frame) { return print_events(frame.events(), json); };
  // Nothing may happen for days: no deadline, Ctrl-C ends it.
  const auto last = connection->call(request, api::ServerFrame::kEvents, UINT64_MAX, show);
  if (!last) return tl::unexpected(last.error());
  return print_events(last->events(), json);
}

}  // namespace

Result<void> verb_events(const Invocation& invocation, Context& context) {
  api::ClientFrame request;
  request.mutable_events()->set_follow(invocation.follow);
  request.mutable_events()->set_limit(invocation.limit.value_or(0));
  if (invocation.follow) return follow(request, context);
  const auto reply = ask(context, request, api::ServerFrame::kEvents);
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->events());
  return print_events(reply->events(), false);
}

}  // namespace usblease::cli
