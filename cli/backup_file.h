// The file that `cluster backup` writes: one line that says what it is, an api.BackupReply, and the SHA-256 of all
// before it. It holds what the store holds, the key of the cluster's CA included: mode 0600.
#pragma once

#include <string>

#include "api.pb.h"
#include "common/error.h"

namespace usblease::cli {

inline constexpr std::size_t kBackupBytesMax = std::size_t{64} * 1024 * 1024;

// Durably; a file that is there already is never overwritten (kRefused).
Result<void> write_backup_file(const std::string& path, const api::BackupReply& backup);

// kNotFound: no such file; kBadInput: it is no backup, was cut or changed, or is of a newer version.
Result<api::BackupReply> read_backup_file(const std::string& path);

}  // namespace usblease::cli
