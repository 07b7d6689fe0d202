// A disk that fails when a test says so: SQLite's default VFS, with errors in between. Every operation on the database
// and its log is counted; the store's own small files are not its business.
#pragma once

#include <cstdint>

namespace usblease::store_test {

enum class Operation : std::uint8_t { kRead, kWrite, kSync, kTruncate };

// Makes it the default VFS of this process; before the first store is opened.
void install_fault_vfs();

// Decides about each operation: SQLITE_OK goes on to the real file, anything else is the answer. It runs on the
// store's thread and may wait. `log`: on the log, not the database. nullptr: no faults.
using FaultRule = int (*)(Operation operation, bool log);
void set_fault_rule(FaultRule rule);

}  // namespace usblease::store_test
