#include "daemon/store/sqlite_engine.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/text.h"
#include "daemon/store/envelope.h"
#include "daemon/store/wal_check.h"

namespace usblease::store {
namespace {

// About 4 MiB of log: a checkpoint is two syncs and some hundred page writes, so it must be rare; and every start
// reads the log, so it must be short.
constexpr int kCheckpointFrames = 1000;
constexpr int kCheckpointRetryFrames = 32;

bool is_full(int rc) { return (rc & 0xff) == SQLITE_FULL; }

int step_once(const Statement& statement) {
  Use use(statement);
  const int rc = use.step();
  return rc == SQLITE_DONE || rc == SQLITE_ROW ? SQLITE_OK : rc;
}

TxnResult guard_failed(std::uint64_t revision, const std::string& key) {
  return {Outcome::kRefused, Cause::kGuard, revision, "record \"" + escape_text(key) + "\" has changed"};
}

}  // namespace

std::vector<TxnResult> SqliteEngine::commit(std::span<const Txn* const> group) {
  std::vector<TxnResult> results(group.size());
  if (broken_) settle();
  if (broken_) {
    for (TxnResult& result : results) result = {Outcome::kRefused, Cause::kFailed, 0, problem()};
    return results;
  }
  Pending next{meta_, {}};
  int rc = step_once(statements_.begin);
  for (std::size_t i = 0; rc == SQLITE_OK && i < group.size(); ++i) rc = apply(*group[i], next, results[i]);
  if (rc == SQLITE_OK && next.changes.empty()) {
    step_once(statements_.rollback);
    return results;
  }
  if (rc == SQLITE_OK) rc = put_meta(next.meta);
  if (rc != SQLITE_OK) {
    abandon(rc, false, results);
    return results;
  }
  rc = step_once(statements_.commit);
  if (rc == SQLITE_OK) {
    accept(std::move(next));
    write_problem_.clear();
    return results;
  }
  // Full: a write found no room, so the frame that ends the transaction is not in the log.
  const bool unknown = !is_full(rc);
  if (unknown) doubt_ = std::move(next);
  abandon(rc, unknown, results);
  return results;
}

int SqliteEngine::apply(const Txn& txn, Pending& next, TxnResult& result) {
  std::string failed;
  if (const int rc = check_guards(txn, failed); rc != SQLITE_OK) return rc;
  if (!failed.empty()) {
    result = guard_failed(next.meta.revision, failed);
    return SQLITE_OK;
  }
  const std::uint64_t revision = next.meta.revision + 1;
  const std::size_t changes_before = next.changes.size();
  for (const Write& one : txn.writes) {
    if (const int rc = write(one, next, revision); rc != SQLITE_OK) return rc;
  }
  if (next.changes.size() > changes_before) next.meta.revision = revision;
  result = {Outcome::kDone, Cause::kNone, next.meta.revision, {}};
  return SQLITE_OK;
}

int SqliteEngine::check_guards(const Txn& txn, std::string& failed) {
  for (const Guard& guard : txn.guards) {
    Found found;
    if (const int rc = find(guard.key, found); rc != SQLITE_OK) return rc;
    const bool by_create = guard.what == Guard::What::kCreateRevision;
    if ((by_create ? found.create_revision : found.mod_revision) != guard.revision) {
      failed = guard.key;
      return SQLITE_OK;
    }
  }
  return SQLITE_OK;
}

int SqliteEngine::find(std::string_view key, Found& found) {
  Use use(statements_.find);
  use.bind_text(1, key);
  const int rc = use.step();
  if (rc == SQLITE_ROW) found = {true, use.number(0), use.number(1), use.number(2)};
  return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int SqliteEngine::write(const Write& write, Pending& next, std::uint64_t revision) {
  Found found;
  if (const int rc = find(write.key, found); rc != SQLITE_OK) return rc;
  if (!write.value && !found.there) return SQLITE_OK;
  const int rc = write.value ? put(write, found, next, revision) : erase(write, found, next);
  if (rc != SQLITE_OK) return rc;
  next.changes.push_back({WatchUpdate::What::kChange, revision, write.key, write.value});
  return SQLITE_OK;
}

int SqliteEngine::put(const Write& write, const Found& found, Pending& next, std::uint64_t revision) {
  const std::string sealed = seal(write.key, *write.value);
  Row row{write.key, sealed, found.there ? found.create_revision : revision, revision, write.owned, 0};
  row.sum = row_sum(row);
  next.meta.digest += row.sum - found.sum;
  if (!found.there) ++next.meta.rows;
  Use use(found.there ? statements_.update : statements_.insert);
  use.bind_text(1, row.key);
  use.bind_blob(2, row.sealed);
  use.bind(3, row.create_revision);
  use.bind(4, row.mod_revision);
  use.bind(5, row.owned ? 1 : 0);
  use.bind(6, row.sum);
  const int rc = use.step();
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int SqliteEngine::erase(const Write& write, const Found& found, Pending& next) {
  next.meta.digest -= found.sum;
  --next.meta.rows;
  Use use(statements_.erase);
  use.bind_text(1, write.key);
  const int rc = use.step();
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int SqliteEngine::put_meta(const DatabaseMeta& meta) {
  const std::string sealed = encode_meta(meta);
  Use use(statements_.put_meta);
  use.bind_blob(1, sealed);
  const int rc = use.step();
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

void SqliteEngine::accept(Pending done) {
  meta_ = std::move(done.meta);
  changes_.insert(changes_.end(), std::make_move_iterator(done.changes.begin()),
                  std::make_move_iterator(done.changes.end()));
  write_mark();
}

void SqliteEngine::abandon(int rc, bool unknown, std::vector<TxnResult>& results) {
  const std::string why = sqlite_message(db_.get());
  if (sqlite3_get_autocommit(db_.get()) == 0) step_once(statements_.rollback);
  // Frames of the failed attempt may lie in the log; and what SQLite holds in memory is not what the disk holds.
  broken_ = true;
  const bool full = is_full(rc);
  const std::string message = full ? path_ + ": the disk is full; free some room, then writes work again"
                                   : path_ + ": cannot write: " + why + "; check the disk";
  for (TxnResult& result : results) {
    // A transaction whose guard did not hold, though by what may not have happened, has written nothing in any case.
    const bool wrote_nothing = result.outcome == Outcome::kRefused;
    result = {unknown && !wrote_nothing ? Outcome::kUnknown : Outcome::kRefused,
              full ? Cause::kNoSpace : Cause::kFailed, unknown ? 0 : meta_.revision, message};
  }
  note(write_problem_, message, full ? "the store's disk is full" : "the store cannot write");
}

// Logs what is new only: a full disk is often the logs' disk as well.
void SqliteEngine::note(std::string& problem, std::string message, const char* summary) {
  if (message == problem) return;
  log::error(summary, {{"ERROR", message}});
  problem = std::move(message);
}

void SqliteEngine::write_mark() {
  const auto written = mark_->write({meta_.database_id, meta_.revision});
  if (!written && mark_problem_.empty()) log::warning("the store's mark lags", {{"ERROR", written.error().message}});
  mark_problem_ = written ? "" : written.error().message + "; an old copy of the database may pass unnoticed";
}

ReadResult SqliteEngine::read(std::string_view prefix) {
  if (broken_) settle();
  if (broken_) return {false, 0, {}, problem()};
  const auto failed = [&](std::string& problem, std::string why) -> ReadResult {
    note(problem, std::move(why), "the store cannot read");
    return {false, 0, {}, problem};
  };
  const auto end = prefix_end(prefix);
  ReadResult result{true, meta_.revision, {}, {}};
  Use use(end ? statements_.read_range : statements_.read_from);
  use.bind_text(1, prefix);
  if (end) use.bind_text(2, *end);
  for (;;) {
    const int rc = use.step();
    if (rc == SQLITE_DONE) break;
    if (rc != SQLITE_ROW) {
      return failed(read_problem_, path_ + ": cannot read: " + sqlite_message(db_.get()) + "; check the disk");
    }
    auto entry = open_row(read_row(use));
    if (!entry) {
      return failed(damage_,
                    path_ + ": " + entry.error().message + "; stop the daemon, check the disk and put back a backup");
    }
    result.entries.push_back(std::move(*entry));
  }
  read_problem_.clear();
  return result;
}

void SqliteEngine::settle() {
  if (broken_) {
    const auto recovered = recover();
    broken_ = !recovered;
    if (!recovered) note(write_problem_, recovered.error().message, "the store cannot go on");
    return;
  }
  if (log_frames_ >= checkpoint_frames_) checkpoint();
}

void SqliteEngine::checkpoint() {
  int in_log = 0;
  int moved = 0;
  const int rc = sqlite3_wal_checkpoint_v2(db_.get(), "main", SQLITE_CHECKPOINT_PASSIVE, &in_log, &moved);
  if (rc == SQLITE_OK && in_log == moved) {
    checkpoint_problem_.clear();
    log_frames_ = 0;
    checkpoint_frames_ = kCheckpointFrames;
    return;
  }
  // Nothing is lost: the log holds it all and goes on growing.
  checkpoint_frames_ = log_frames_ + kCheckpointRetryFrames;
  note(checkpoint_problem_,
       path_ + ": cannot move the log into the database: " + sqlite_message(db_.get()) +
           (is_full(rc) ? "; free some room" : "; check the disk"),
       "the store's log grows");
}

std::string SqliteEngine::problem() const {
  for (const std::string* one : {&damage_, &write_problem_, &read_problem_, &checkpoint_problem_, &mark_problem_}) {
    if (!one->empty()) return *one;
  }
  return {};
}

}  // namespace usblease::store
