// The store on SQLite: one host, no other service.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "daemon/store/store.h"

namespace usblease::store {

struct SqliteOptions {
  std::string path;        // the database; its directory must exist. PATH-wal, PATH.lock and PATH.mark lie beside it
  std::string cluster_id;  // expected; empty: adopt what the database says, or create one
  std::uint32_t call_timeout_ms = 5'000;  // after which a call ends as unknown although the disk has not answered
};

// Opens or creates the database, checks all of it, and takes it for this process alone.
//
// kRefused, with what to do: another process has it; it is of another cluster or a newer version; a record, a page, the
// log or the mark does not check (a flipped bit, a cut file, an old copy put back). Nothing is changed then.
// Leftover owned keys of a previous process are deleted.
Result<std::unique_ptr<Store>> open_sqlite_store(const SqliteOptions& options, Executor executor);

// The cluster id in an open store made by open_sqlite_store.
std::string sqlite_cluster_id(const Store& store);

}  // namespace usblease::store
