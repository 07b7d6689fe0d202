// SqliteEngine's beginning and end: opening with every check, taking over, and making a broken connection anew.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "common/log.h"
#include "common/text.h"
#include "daemon/store/sqlite_engine.h"
#include "daemon/store/wal_check.h"

namespace usblease::store {
namespace {

namespace fs = std::filesystem;

// Some more than a checkpoint's worth of frames (sqlite_engine.cc), so that in daily work the log never grows: a sync
// of a file that grew costs the file system's journal as well. And writes work for a while when the disk is full.
constexpr std::uint64_t kReservedLogBytes = kWalHeaderBytes + 1250 * kWalFrameBytes;

// Symbolic links must not make two names, and so two locks, of one database.
Result<std::string> real_path(const std::string& path) {
  std::error_code error;
  const fs::path real = fs::weakly_canonical(path, error);
  if (error) return fail_errno("cannot find " + path, error.value());
  if (!fs::is_directory(real.parent_path(), error)) {
    return fail(ErrorCode::kNotFound,
                "there is no directory " + real.parent_path().string() + " for the database: make it");
  }
  return real.string();
}

bool has_content(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && info.st_size > 0;
}

Result<bool> exists(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return false;
    return fail_errno("cannot look at " + path, errno);
  }
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::kRefused, path + " is not a regular file");
  return true;
}

int remember_log_frames(void* frames, sqlite3* /*db*/, const char* /*name*/, int in_log) {
  *static_cast<int*>(frames) = in_log;
  return SQLITE_OK;
}

}  // namespace

Result<std::unique_ptr<SqliteEngine>> SqliteEngine::open(const SqliteOptions& options) {
  auto path = real_path(options.path);
  if (!path) return tl::unexpected(path.error());
  auto lock = take_lock(*path);
  if (!lock) return tl::unexpected(lock.error());
  std::unique_ptr<SqliteEngine> engine(new SqliteEngine(*path, std::move(*lock)));
  auto ready = engine->create_if_absent(options.cluster_id);
  if (ready) ready = engine->check_all(options.cluster_id);
  if (ready) ready = engine->take_over();
  if (ready) return engine;
  engine->broken_ = true;  // so that its end changes nothing either
  return tl::unexpected(ready.error());
}

// The order: database under another name, mark, database under its name. So a database always has a mark, unless
// somebody removed it; and a mark without a database is that of one that was never used, or the database is gone.
Result<void> SqliteEngine::create_if_absent(const std::string& cluster_id) {
  const auto there = exists(path_);
  if (!there) return tl::unexpected(there.error());
  if (*there) return {};
  if (has_content(path_ + "-wal")) {
    return damaged_database(path_, "the log " + path_ + "-wal is there, but the database is gone");
  }
  const auto mark = read_mark(path_ + ".mark");
  if (!mark) return tl::unexpected(mark.error());
  if (*mark && (*mark)->revision > 0) {
    return damaged_database(path_, "the mark says that a database at revision " + std::to_string((*mark)->revision) +
                                       " was here, but it is gone (to begin with an empty one, remove " + path_ +
                                       ".mark)");
  }
  if (!cluster_id.empty() && !is_identifier(cluster_id)) {
    return fail(ErrorCode::kBadInput, "\"" + escape_text(cluster_id) + "\" is not a cluster id");
  }
  DatabaseMeta meta;
  meta.database_id = random_hex(16);
  meta.cluster_id = cluster_id.empty() ? random_hex(16) : cluster_id;
  const std::string fresh = path_ + ".new";
  if (auto made = create_database(fresh, meta); !made) return made;
  if (auto marked = MarkFile::create(path_ + ".mark", {meta.database_id, 0}); !marked)
    return tl::unexpected(marked.error());
  if (rename(fresh.c_str(), path_.c_str()) != 0) return fail_errno("cannot rename " + fresh, errno);
  log::info("new database", {{"PATH", path_}, {"CLUSTER", meta.cluster_id}});
  return sync_directory_of(path_);
}

Result<void> SqliteEngine::check_all(const std::string& cluster_id) {
  if (has_content(path_ + "-journal")) {
    return damaged_database(path_, path_ + "-journal is not from usblease, and SQLite would play it into the database");
  }
  if (auto header = check_database_header(path_); !header) return header;
  const auto log = check_wal(path_ + "-wal");
  if (!log && log.error().code != ErrorCode::kRefused) return tl::unexpected(log.error());
  if (!log) return damaged_database(path_, log.error().message);
  log_end_ = log->committed_end;
  log_leftover_ = log->leftover;

  if (auto connected = connect(); !connected) return connected;
  auto meta = load_meta(db_.get());
  if (!meta && (sqlite3_errcode(db_.get()) & 0xff) == SQLITE_BUSY) {
    return fail(ErrorCode::kRefused, path_ + " is in use by another program (sqlite3?): end that one first");
  }
  if (!meta) return damaged_database(path_, meta.error().message);
  meta_ = std::move(*meta);
  if (auto checked = check_database(db_.get(), meta_); !checked)
    return damaged_database(path_, checked.error().message);
  if (!cluster_id.empty() && cluster_id != meta_.cluster_id) {
    return fail(ErrorCode::kRefused, path_ + " is the database of another cluster: it is of " +
                                         escape_text(meta_.cluster_id) + ", and this host belongs to " +
                                         escape_text(cluster_id) +
                                         ". Nothing was changed. Put back this cluster's database, or give the daemon "
                                         "another state directory");
  }
  return check_mark();
}

Result<void> SqliteEngine::check_mark() {
  const std::string path = path_ + ".mark";
  const auto mark = read_mark(path);
  if (!mark) return tl::unexpected(mark.error());
  if (!*mark) {
    // Whoever removes the mark has said that this copy shall count (docs/store.md).
    log::warning("the database has no mark: lost transactions or an old copy would not be noticed here",
                 {{"PATH", path_}});
    return {};
  }
  if ((*mark)->database_id != meta_.database_id) {
    return damaged_database(path_,
                            path + " is the mark of another database (if this database shall count, remove the mark)");
  }
  if ((*mark)->revision > meta_.revision) {
    return damaged_database(path_, "the database is at revision " + std::to_string(meta_.revision) +
                                       ", but had reached " + std::to_string((*mark)->revision) +
                                       ": it is an old copy, or its log was lost, cut or damaged (if this older state "
                                       "shall count, remove " +
                                       path + ")");
  }
  return {};
}

Result<void> SqliteEngine::take_over() {
  if (auto cleared = clear_wal_leftover(path_ + "-wal", {log_end_, log_leftover_}); !cleared) return cleared;
  const std::string path = path_ + ".mark";
  auto mark = access(path.c_str(), F_OK) == 0 ? MarkFile::open(path)
                                              : MarkFile::create(path, {meta_.database_id, meta_.revision});
  if (!mark) return tl::unexpected(mark.error());
  mark_.emplace(std::move(*mark));
  write_mark();
  if (auto prepared = prepare_all(); !prepared) return prepared;
  if (auto deleted = delete_owned_keys(); !deleted) return deleted;
  settle();
  if (broken_) return fail(ErrorCode::kInternal, problem());
  checkpoint();
  reserve_log();
  return {};
}

Result<void> SqliteEngine::delete_owned_keys() {
  Txn txn;
  {
    const auto statement = prepare(db_.get(), "SELECT key FROM kv WHERE owned <> 0");
    if (!statement) return tl::unexpected(statement.error());
    Use use(*statement);
    while (use.step() == SQLITE_ROW) txn.writes.push_back({std::string(use.bytes(0)), std::nullopt, false});
  }
  if (txn.writes.empty()) return {};
  const Txn* const one = &txn;
  const TxnResult result = commit({&one, 1}).front();
  changes_.clear();  // nobody watches yet
  if (result.outcome == Outcome::kDone) return {};
  return fail(result.cause == Cause::kNoSpace ? ErrorCode::kUnavailable : ErrorCode::kInternal, result.message);
}

void SqliteEngine::reserve_log() {
  const UniqueFd fd(::open((path_ + "-wal").c_str(), O_WRONLY | O_CLOEXEC));
  struct stat info {};
  struct statvfs room {};
  if (!fd || fstat(fd.get(), &info) != 0 || fstatvfs(fd.get(), &room) != 0) return;
  // Not on a small or nearly full disk: others, the host's floors first, need room more.
  if (room.f_bavail * room.f_frsize < 8 * kReservedLogBytes) return;
  const std::string zeros(65'536,
                          '\0');  // written, not only allocated: an unwritten extent costs at its first write
  for (auto at = static_cast<std::uint64_t>(info.st_size); at < kReservedLogBytes; at += zeros.size()) {
    if (pwrite(fd.get(), zeros.data(), zeros.size(), static_cast<off_t>(at)) < 0) return;
  }
  if (fsync(fd.get()) != 0) log::warning("cannot sync the store's log", {{"PATH", path_}});
}

Result<void> SqliteEngine::connect() {
  auto db = open_database(path_);
  if (!db) return tl::unexpected(db.error());
  db_ = std::move(*db);
  // EXCLUSIVE before the first access: then SQLite needs no shared memory file. The limit takes back what one very
  // large transaction made of the log.
  const std::string pragmas =
      "PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; "
      "PRAGMA journal_size_limit=" +
      std::to_string(kReservedLogBytes) +
      "; PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY; PRAGMA cell_size_check=ON; "
      "PRAGMA secure_delete=OFF";
  if (auto set = run_sql(db_.get(), pragmas); !set) {
    if ((sqlite3_errcode(db_.get()) & 0xff) == SQLITE_BUSY) {
      return fail(ErrorCode::kRefused, path_ + " is in use by another program (sqlite3?): end that one first");
    }
    return damaged_database(path_, "SQLite cannot open the database: " + set.error().message);
  }
  sqlite3_wal_hook(db_.get(), remember_log_frames, &log_frames_);
  return {};
}

Result<void> SqliteEngine::prepare_all() {
  const std::string columns(kRowColumns);
  const std::pair<Statement*, std::string> all[] = {
      {&statements_.begin, "BEGIN IMMEDIATE"},
      {&statements_.commit, "COMMIT"},
      {&statements_.rollback, "ROLLBACK"},
      {&statements_.find, "SELECT create_revision, mod_revision, sum FROM kv WHERE key = ?1"},
      {&statements_.insert, "INSERT INTO kv(" + columns + ") VALUES(?1, ?2, ?3, ?4, ?5, ?6)"},
      {&statements_.update,
       "UPDATE kv SET value = ?2, create_revision = ?3, mod_revision = ?4, owned = ?5, sum = ?6 WHERE key = ?1"},
      {&statements_.erase, "DELETE FROM kv WHERE key = ?1"},
      {&statements_.put_meta, "UPDATE meta SET sealed = ?1 WHERE id = 1"},
      {&statements_.read_from, "SELECT " + columns + " FROM kv WHERE key >= ?1 ORDER BY key"},
      {&statements_.read_range, "SELECT " + columns + " FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key"}};
  for (const auto& [statement, sql] : all) {
    auto prepared = prepare(db_.get(), sql);
    if (!prepared) return tl::unexpected(prepared.error());
    *statement = std::move(*prepared);
  }
  return {};
}

void SqliteEngine::disconnect() {
  statements_ = {};
  db_.reset();
}

// What happened is what a new connection finds, as after a crash.
Result<void> SqliteEngine::recover() {
  disconnect();
  const std::string log_path = path_ + "-wal";
  const auto log = check_wal(log_path);
  if (!log) return tl::unexpected(log.error());
  if (auto connected = connect(); !connected) return connected;
  const auto meta = load_meta(db_.get());
  if (!meta) return fail(meta.error().code, path_ + ": " + meta.error().message);
  const bool happened = doubt_ && *meta == doubt_->meta;
  if (!happened && *meta != meta_) {
    return damaged_database(
        path_, "the database is not what this process left; somebody else wrote to it, or the disk is failing");
  }
  if (auto cleared = clear_wal_leftover(log_path, *log); !cleared) return cleared;
  if (auto prepared = prepare_all(); !prepared) return prepared;
  if (happened) {
    if (auto durable = make_durable(); !durable) return durable;
    accept(std::move(*doubt_));
  }
  doubt_.reset();
  log_frames_ = static_cast<int>(log->committed_end / kWalFrameBytes);
  return {};
}

// After a failed sync the kernel may hold for clean what is not on the disk. So the log is not trusted: everything goes
// into the database, that is synced, and then the log is emptied, so that no older half of it is ever played again.
Result<void> SqliteEngine::make_durable() {
  if (sqlite3_wal_checkpoint_v2(db_.get(), "main", SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr) != SQLITE_OK) {
    return fail(ErrorCode::kUnavailable, path_ + ": cannot make a doubtful transaction durable: " +
                                             sqlite_message(db_.get()) + "; check the disk");
  }
  const UniqueFd fd(::open((path_ + "-wal").c_str(), O_RDWR | O_CLOEXEC));
  if (!fd || fsync(fd.get()) != 0) return fail_errno("cannot sync " + path_ + "-wal", errno);
  return {};
}

SqliteEngine::~SqliteEngine() {
  statements_ = {};
  if (!broken_ && db_) sqlite3_db_config(db_.get(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, nullptr);
  db_.reset();
  if (broken_ || !mark_) return;
  if (auto synced = mark_->sync(); !synced) log::warning("the store's mark lags", {{"ERROR", synced.error().message}});
}

}  // namespace usblease::store
