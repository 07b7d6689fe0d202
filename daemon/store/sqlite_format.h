// What lies in the database, and how each part of it is checked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/error.h"
#include "daemon/store/sqlite_db.h"
#include "daemon/store/store.h"

namespace usblease::store {

inline constexpr std::uint32_t kApplicationId = 0x55534c53;  // "USLS"
inline constexpr std::uint32_t kDatabaseFormat = 1;          // PRAGMA user_version

// `sum` covers the whole row, the revisions too, which the value's envelope does not.
inline constexpr std::string_view kCreateKv =
    "CREATE TABLE kv(key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL, create_revision INTEGER NOT NULL, "
    "mod_revision INTEGER NOT NULL, owned INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT, WITHOUT ROWID";
inline constexpr std::string_view kCreateMeta =
    "CREATE TABLE meta(id INTEGER PRIMARY KEY CHECK (id = 1), sealed BLOB NOT NULL) STRICT";

// The one row of `meta`, written with every transaction.
struct DatabaseMeta {
  std::string database_id;  // 32 hex digits, made with the database: tells a copy from another database
  std::string cluster_id;
  std::uint64_t revision = 0;  // of the last transaction that changed something
  std::uint64_t rows = 0;
  std::uint64_t digest = 0;  // sum of all rows' `sum`, modulo 2^64: finds rows that are lost, old or back again
  bool operator==(const DatabaseMeta&) const = default;
};

std::string encode_meta(const DatabaseMeta& meta);
Result<DatabaseMeta> load_meta(sqlite3* db);

// A row as it lies there; the views are the statement's.
struct Row {
  std::string_view key;
  std::string_view sealed;
  std::uint64_t create_revision = 0;
  std::uint64_t mod_revision = 0;
  bool owned = false;
  std::uint64_t sum = 0;
};

inline constexpr std::string_view kRowColumns = "key, value, create_revision, mod_revision, owned, sum";
Row read_row(const Use& use);  // from a statement that selects kRowColumns

// The first 64 bits of the SHA-256 of all other fields.
std::uint64_t row_sum(const Row& row);

// Checks sum, envelope and bounds. kRefused names the key.
Result<Entry> open_row(const Row& row);

// Before SQLite opens the file: its first 100 bytes. kRefused: not a database, not ours, of a newer version, damaged.
Result<void> check_database_header(const std::string& path);

// After SQLite has opened it: pages, schema, and every record against `meta`. The error says the first thing wrong.
Result<void> check_database(sqlite3* db, const DatabaseMeta& meta);

// Makes an empty database at `path`, complete and synced; the caller then gives it its real name, so that a database
// is never half made.
Result<void> create_database(const std::string& path, const DatabaseMeta& meta);

// A refusal that says what to do: copies away, check the disk, put back one backup.
tl::unexpected<Error> damaged_database(const std::string& path, const std::string& what);

}  // namespace usblease::store
