#include <string_view>

#include "cli/backup_file.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::size_t kPartBytesMax = 256 * 1024;
constexpr int kPartRecordsMax = 128;

// What of a backup counts: devices with their tokens and leases, and hosts with their barred boots.
Result<std::vector<api::RestorePart>> parts_of(const api::BackupReply& backup) {
  std::vector<api::RestorePart> parts(1);
  parts[0].set_begin(true);
  for (const auto& entry : backup.records()) {
    const std::string_view key = entry.key();
    const bool device = key.starts_with("device/");
    if (!device && !key.starts_with("host/")) continue;
    api::RestorePart& part = parts.back();
    const bool parsed =
        device ? part.add_devices()->ParseFromString(entry.value()) : part.add_hosts()->ParseFromString(entry.value());
    if (!parsed)
      return fail(ErrorCode::kBadInput,
                  "the record " + escape_text(key) + " of the backup does not parse; use another backup");
    if (part.ByteSizeLong() >= kPartBytesMax || part.devices_size() + part.hosts_size() >= kPartRecordsMax)
      parts.emplace_back();
  }
  parts.emplace_back().set_end(true);
  return parts;
}

}  // namespace

Result<void> verb_cluster_restore(const Invocation& invocation, Context& context) {
  const auto backup = read_backup_file(invocation.words[0]);
  if (!backup) return tl::unexpected(backup.error());
  const auto parts = parts_of(*backup);
  if (!parts) return tl::unexpected(parts.error());
  api::RestorePartReply last;
  for (const api::RestorePart& part : *parts) {
    api::ClientFrame request;
    *request.mutable_restore_part() = part;
    const auto reply = ask(context, request, api::ServerFrame::kRestorePart);
    if (!reply) return tl::unexpected(reply.error());
    last = reply->restore_part();
  }
  if (invocation.globals.json) return print_json(last);
  print_done(invocation.globals, "restored what was there at " + format_unix_time(backup->header().unix_s()) +
                                     "; epoch " + std::to_string(last.epoch()) + " has begun; " +
                                     std::to_string(last.leases_left()) + " lease(s) are being fenced");
  return {};
}

}  // namespace usblease::cli
