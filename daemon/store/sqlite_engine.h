// The database of one store, without threads: every call is made by one thread at a time and ends when the disk has
// answered.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "daemon/store/sqlite_db.h"
#include "daemon/store/sqlite_files.h"
#include "daemon/store/sqlite_format.h"
#include "daemon/store/sqlite_store.h"
#include "daemon/store/store.h"

namespace usblease::store {

class SqliteEngine {
 public:
  // As open_sqlite_store.
  static Result<std::unique_ptr<SqliteEngine>> open(const SqliteOptions& options);

  SqliteEngine(const SqliteEngine&) = delete;
  SqliteEngine& operator=(const SqliteEngine&) = delete;
  // A clean end: the log goes into the database, the mark is synced.
  ~SqliteEngine();

  // Runs the transactions in order, each against what those before it left, all in one SQLite transaction: one sync.
  // If that cannot be committed, none of them happened (or it is unknown for all that wrote). All are within bounds.
  std::vector<TxnResult> commit(std::span<const Txn* const> group);

  ReadResult read(std::string_view prefix);

  // Work that nobody waits for: moves a long log into the database, finds out what an unknown commit came to.
  void settle();

  // The changes that became known to have happened since the last call, in order.
  std::vector<WatchUpdate> take_changes() { return std::exchange(changes_, {}); }

  [[nodiscard]] std::uint64_t revision() const { return meta_.revision; }
  [[nodiscard]] const std::string& cluster_id() const { return meta_.cluster_id; }
  [[nodiscard]] const std::string& path() const { return path_; }

  // What is wrong and what to do; empty: nothing.
  [[nodiscard]] std::string problem() const;

 private:
  // What the database will be when the transaction in hand is committed.
  struct Pending {
    DatabaseMeta meta;
    std::vector<WatchUpdate> changes;
  };
  struct Statements {
    Statement begin, commit, rollback, find, insert, update, erase, put_meta, read_from, read_range;
  };
  struct Found {
    bool there = false;
    std::uint64_t create_revision = 0;
    std::uint64_t mod_revision = 0;
    std::uint64_t sum = 0;
  };

  SqliteEngine(std::string path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  Result<void> create_if_absent(const std::string& cluster_id);
  Result<void> check_all(const std::string& cluster_id);
  Result<void> check_mark();
  Result<void> take_over();
  Result<void> delete_owned_keys();
  void reserve_log();

  Result<void> connect();
  Result<void> prepare_all();
  void disconnect();
  Result<void> recover();
  Result<void> make_durable();

  // All of these return SQLITE_OK or SQLite's error.
  int find(std::string_view key, Found& found);
  int apply(const Txn& txn, Pending& next, TxnResult& result);
  int check_guards(const Txn& txn, std::string& failed);
  int write(const Write& write, Pending& next, std::uint64_t revision);
  int put(const Write& write, const Found& found, Pending& next, std::uint64_t revision);
  int erase(const Write& write, const Found& found, Pending& next);
  int put_meta(const DatabaseMeta& meta);

  void accept(Pending done);
  void abandon(int rc, bool unknown, std::vector<TxnResult>& results);
  void write_mark();
  static void note(std::string& problem, std::string message, const char* summary);
  void checkpoint();

  std::string path_;
  UniqueFd lock_;
  std::optional<MarkFile> mark_;
  Database db_;
  Statements statements_;
  DatabaseMeta meta_;  // of the last transaction that is known to be done
  std::vector<WatchUpdate> changes_;
  std::uint64_t log_end_ = 0;  // only while opening: end of the log's last whole transaction
  bool log_leftover_ = false;

  int log_frames_ = 0;            // in the log after the last commit
  int checkpoint_frames_ = 0;     // at which the log is next moved into the database
  bool broken_ = false;           // the connection must be made anew before the next call
  std::optional<Pending> doubt_;  // what an unknown commit would have come to

  // For problem(). Damage stays until the process ends; the others until the same thing works again.
  std::string damage_, write_problem_, read_problem_, checkpoint_problem_, mark_problem_;
};

}  // namespace usblease::store
