#include "daemon/store/sqlite_db.h"

#include <glib.h>

namespace usblease::store {

std::string sqlite_message(sqlite3* db) {
  std::string text = sqlite3_errmsg(db);
  const int error_number = sqlite3_system_errno(db);
  if (error_number != 0) text += std::string(" (") + g_strerror(error_number) + ")";
  return text;
}

Result<Database> open_database(const std::string& path) {
  sqlite3* raw = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int rc = sqlite3_open_v2(path.c_str(), &raw, flags, nullptr);
  Database db(raw);
  if (rc != SQLITE_OK) {
    return fail(ErrorCode::kInternal,
                "cannot open " + path + ": " + (raw != nullptr ? sqlite_message(raw) : "no memory"));
  }
  // Closing must change nothing unless everything was found right: Engine turns this off for a clean end.
  sqlite3_db_config(raw, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
  sqlite3_db_config(raw, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(raw, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  return db;
}

Result<void> run_sql(sqlite3* db, const std::string& sql) {
  if (sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) return {};
  return fail(ErrorCode::kInternal, sqlite_message(db));
}

Result<Statement> prepare(sqlite3* db, std::string_view sql) {
  sqlite3_stmt* raw = nullptr;
  const int rc =
      sqlite3_prepare_v3(db, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
  Statement statement(raw);
  if (rc != SQLITE_OK) return fail(ErrorCode::kInternal, sqlite_message(db));
  return statement;
}

}  // namespace usblease::store
