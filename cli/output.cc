#include "cli/output.h"

#include <google/protobuf/util/json_util.h>

#include <cstdio>

#include "common/text.h"

namespace usblease::cli {

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

Result<void> flush_output() {
  const bool failed = std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
  if (!failed) return {};
  std::clearerr(stdout);
  return fail(ErrorCode::kInternal, "cannot write the answer to standard output; is the disk full?");
}

void print_error(const Error& error) {
  const std::string line = "usblease: error: " + printable_message(error.message) + "\n";
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void print_warning(const std::string& sentence) {
  const std::string line = "usblease: warning: " + printable_message(sentence) + "\n";
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

Result<std::string> to_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) return fail(ErrorCode::kInternal, "cannot write the answer as JSON: " + status.ToString());
  return json;
}

Result<void> print_json(const google::protobuf::Message& message) {
  auto json = to_json(message);
  if (!json) return tl::unexpected(json.error());
  print(*json + "\n");
  return {};
}

void print_done(const Globals& globals, const std::string& sentence) {
  if (!globals.quiet) print(sentence + "\n");
}

std::string format_until(std::uint64_t unix_s, std::uint64_t now_unix_s) {
  constexpr std::size_t kDateLength = sizeof "2026-11-23 " - 1;
  const std::string whole = format_unix_time(unix_s);
  const std::string now = format_unix_time(now_unix_s);
  const bool today = whole.size() > kDateLength && whole.substr(0, kDateLength) == now.substr(0, kDateLength);
  return today ? whole.substr(kDateLength) : whole;
}

std::string phase_name(record::Phase phase) {
  switch (phase) {
    case record::PHASE_GRANTED:
      return "granted";
    case record::PHASE_REVOKING:
      return "revoking";
    case record::PHASE_FENCING:
      return "fencing";
    default:
      return "-";
  }
}

std::string rung_text(record::Rung rung) {
  switch (rung) {
    case record::RUNG_ADMISSION:
      return "admission";
    case record::RUNG_RELAY:
      return "relay";
    case record::RUNG_QEMU:
      return "qemu";
    case record::RUNG_KERNEL:
      return "kernel";
    case record::RUNG_UNBIND:
      return "unbind";
    case record::RUNG_DESTROY:
      return "destroy";
    case record::RUNG_WATCHDOG:
      return "watchdog";
    default:
      return "-";
  }
}

}  // namespace usblease::cli
