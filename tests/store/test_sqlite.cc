// The contract on SQLite, and what its start refuses or repairs.
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "common/fd.h"
#include "tests/store/sqlite_env.h"

using namespace usblease;
using namespace usblease::store_test;
using store::Outcome;

namespace {

namespace fs = std::filesystem;

// A database at its second revision, closed.
Image make_database(const std::string& path) {
  TestLoop loop;
  auto store = open_store(path, loop);
  ck_assert(commit(*store, loop, {{}, {put("a", "1"), put("b", "1")}}).outcome == Outcome::kDone);
  ck_assert(commit(*store, loop, {{}, {put("a", "2"), put("mine", "x", true)}}).outcome == Outcome::kDone);
  store.reset();
  return take_image(path);
}

void run_sql(const std::string& path, const char* sql) {
  sqlite3* db = nullptr;
  ck_assert_int_eq(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ck_assert_msg(sqlite3_exec(db, sql, nullptr, nullptr, nullptr) == SQLITE_OK, "%s", sqlite3_errmsg(db));
  sqlite3_close(db);
}

START_TEST(creates_and_reopens) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  auto store = open_store(path, loop);
  const std::string id = store::sqlite_cluster_id(*store);
  ck_assert_uint_eq(id.size(), 32);
  expect_text(store->describe(), ("sqlite:" + path));
  store.reset();
  ck_assert(!fs::exists(path + "-wal"));
  for (const char* suffix : {"", ".mark", ".lock"}) {
    struct stat info {};
    ck_assert_int_eq(stat((path + suffix).c_str(), &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777, 0600);
  }
  store = open_store(path, loop);
  expect_text(store::sqlite_cluster_id(*store), id);
}
END_TEST

START_TEST(takes_the_expected_cluster) {
  const TempDir dir(true);
  TestLoop loop;
  {
    auto store = store::open_sqlite_store({dir.file("u.db"), "my-cluster"}, loop.executor());
    ck_assert(store.has_value());
    expect_text(store::sqlite_cluster_id(**store), "my-cluster");
  }
  const Image before = take_image(dir.file("u.db"));
  const std::string message = expect_refused_open(dir.file("u.db"), "another cluster", "other-cluster");
  ck_assert(message.find("my-cluster") != std::string::npos && message.find("other-cluster") != std::string::npos);
  ck_assert(take_image(dir.file("u.db")).at("") == before.at(""));
  ck_assert(store::open_sqlite_store({dir.file("u.db"), "my-cluster"}, loop.executor()).has_value());
  ck_assert(store::open_sqlite_store({dir.file("u.db"), ""}, loop.executor()).has_value());
  const auto bad = store::open_sqlite_store({dir.file("v.db"), "no cluster\n"}, loop.executor());
  ck_assert(!bad && bad.error().code == ErrorCode::kBadInput);
}
END_TEST

START_TEST(second_opener_is_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  const auto store = open_store(path, loop);
  expect_refused_open(path, "process " + std::to_string(getpid()));
  // By another name as well.
  ck_assert_int_eq(symlink(path.c_str(), dir.file("link.db").c_str()), 0);
  const auto second = store::open_sqlite_store({dir.file("link.db"), ""}, loop.executor());
  ck_assert(!second && second.error().code == ErrorCode::kRefused);
  ck_assert(commit(*store, loop, {{}, {put("a", "1")}}).outcome == Outcome::kDone);
}
END_TEST

START_TEST(other_program_is_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  make_database(path);
  sqlite3* db = nullptr;
  ck_assert_int_eq(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ck_assert_int_eq(sqlite3_exec(db, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  expect_refused_open(path, "another program");
  sqlite3_close(db);
}
END_TEST

START_TEST(other_files_are_refused) {
  const TempDir dir(true);
  TestLoop loop;
  write_file(dir.file("text"), std::string(5000, 't'));
  expect_refused_open(dir.file("text"), "not a database");
  write_file(dir.file("empty"), "");
  expect_refused_open(dir.file("empty"), "empty or cut off");
  run_sql(dir.file("foreign"), "CREATE TABLE t(x); INSERT INTO t VALUES(1)");
  expect_refused_open(dir.file("foreign"), "not one of usblease");
  fs::create_directory(dir.file("directory"));
  expect_refused_open(dir.file("directory"), "not a regular file");
  const auto missing = store::open_sqlite_store({dir.file("none/u.db"), ""}, loop.executor());
  ck_assert(!missing && missing.error().code == ErrorCode::kNotFound);
  ck_assert(read_file(dir.file("text")) == std::string(5000, 't'));
}
END_TEST

START_TEST(newer_version_is_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  Image image = make_database(path);
  image[""][63] = 2;  // PRAGMA user_version
  put_image(path, image);
  expect_refused_open(path, "newer than this program");
  ck_assert(take_image(path) == image);
}
END_TEST

START_TEST(old_copy_is_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  const Image old = make_database(path);
  TestLoop loop;
  {
    const auto store = open_store(path, loop);
    ck_assert(commit(*store, loop, {{}, {put("a", "3")}}).outcome == Outcome::kDone);
  }
  const Image present = take_image(path);
  put_image(path, {{"", old.at("")}, {".mark", present.at(".mark")}});
  expect_refused_open(path, "old copy");
  ck_assert(read_file(path) == old.at(""));
  // What the message says: without the mark the older state counts.
  fs::remove(path + ".mark");
  const auto store = open_store(path, loop);
  expect_text(read_all(*store, loop).entries.at(0).value, "2");
}
END_TEST

START_TEST(lost_files_are_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  auto store = open_store(path, loop);
  ck_assert(commit(*store, loop, {{}, {put("a", "1")}}).outcome == Outcome::kDone);
  const Image killed = take_image(path);
  store.reset();
  Image image = killed;
  image.erase("-wal");
  put_image(path, image);
  expect_refused_open(path, "log was lost");
  image = killed;
  image.erase("");
  put_image(path, image);
  expect_refused_open(path, "the database is gone");
  image.erase("-wal");
  put_image(path, image);
  expect_refused_open(path, "it is gone");
  put_image(path, killed);
  write_file(path + "-journal", "x");
  expect_refused_open(path, "-journal");
  fs::remove(path + "-journal");
  store = open_store(path, loop);
  ck_assert_uint_eq(read_all(*store, loop).entries.size(), 1);
}
END_TEST

START_TEST(mark_of_another_database_is_refused) {
  const TempDir dir(true);
  make_database(dir.file("a.db"));
  make_database(dir.file("b.db"));
  write_file(dir.file("a.db.mark"), read_file(dir.file("b.db.mark")));
  expect_refused_open(dir.file("a.db"), "mark of another database");
}
END_TEST

// A kill between the steps of the first creation.
START_TEST(half_made_database_is_made_again) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  open_store(path, loop).reset();
  fs::rename(path, path + ".new");  // the mark is there, the name not yet
  write_file(path + ".new-journal", "half");
  {
    const auto store = open_store(path, loop);
    ck_assert(commit(*store, loop, {{}, {put("a", "1")}}).outcome == Outcome::kDone);
  }
  ck_assert_uint_eq(read_all(*open_store(path, loop), loop).entries.size(), 1);
}
END_TEST

// Damage that leaves every page and every record intact: rows that are gone, or are there again.
START_TEST(rows_lost_or_back_are_refused) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  const Image image = make_database(path);
  for (const char* sql :
       {"DELETE FROM kv WHERE key='b'", "UPDATE kv SET mod_revision=1 WHERE key='a'",
        "UPDATE kv SET owned=1 WHERE key='a'", "UPDATE kv SET value=(SELECT value FROM kv WHERE key='b') WHERE key='a'",
        "INSERT INTO kv SELECT 'c', value, 1, 1, 0, 0 FROM kv WHERE key='a'", "DELETE FROM meta",
        "CREATE TABLE more(x)", "CREATE INDEX i ON kv(owned)"}) {
    put_image(path, image);
    run_sql(path, sql);
    expect_refused_open(path, "Nothing was changed");
  }
}
END_TEST

// Flipped while the store is open: the read that meets it fails, and nothing else does.
START_TEST(damage_while_open_fails_the_read) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  {
    const auto store = open_store(path, loop);
    // More than SQLite's cache holds, so that reading goes to the file.
    for (int i = 0; i < 400; ++i) {
      const std::string value = std::to_string(1000 + i) + std::string(60000, 'v');
      ck_assert(commit(*store, loop, {{}, {put("big/" + std::to_string(1000 + i), value)}}).outcome == Outcome::kDone);
    }
  }
  const auto store = open_store(path, loop);
  std::string bytes = read_file(path);
  const std::size_t at = bytes.find("1200" + std::string(100, 'v'));
  ck_assert(at != std::string::npos);
  ck_assert(read_all(*store, loop).ok);
  // In place: the inode is the one that is open.
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  ck_assert(pwrite(file.get(), "w", 1, static_cast<off_t>(at + 50)) == 1);
  const auto damaged = read_all(*store, loop);
  ck_assert(!damaged.ok && damaged.entries.empty());
  ck_assert_msg(damaged.message.find("big/1200") != std::string::npos, "%s", damaged.message.c_str());
  ck_assert(!store->health().ok);
  ck_assert(commit(*store, loop, {{}, {put("small", "1")}}).outcome == Outcome::kDone);
  ck_assert(!store->health().ok);
}
END_TEST

// The log is moved into the database again and again and does not grow.
START_TEST(log_is_bounded) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  const auto store = open_store(path, loop);
  std::uintmax_t largest = 0;
  for (int i = 0; i < 3000; ++i) {
    store::Txn txn{{}, {put("k/" + std::to_string(i % 100), std::string(3000, 'v')), put("l", std::to_string(i))}};
    ck_assert(commit(*store, loop, std::move(txn)).outcome == Outcome::kDone);
    if (i % 100 == 0) largest = std::max(largest, fs::file_size(path + "-wal"));
  }
  ck_assert_uint_lt(largest, 6'000'000);
  ck_assert(fs::file_size(path) > 300'000);
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("sqlite");
  add_contract(suite, {"sqlite", [](TestLoop&) { return std::make_unique<SqliteBackend>(); }});
  TCase* const tcase = tcase_create("sqlite-start");
  tcase_set_timeout(tcase, 60);
  for (const TTest* test :
       {creates_and_reopens, takes_the_expected_cluster, second_opener_is_refused, other_program_is_refused,
        other_files_are_refused, newer_version_is_refused, old_copy_is_refused, lost_files_are_refused,
        mark_of_another_database_is_refused, half_made_database_is_made_again, rows_lost_or_back_are_refused,
        damage_while_open_fails_the_read, log_is_bounded}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
