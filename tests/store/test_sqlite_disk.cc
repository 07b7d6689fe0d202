// A disk that is full, fails, or does not answer.
#include <fcntl.h>
#include <sched.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "common/fd.h"
#include "tests/store/fault_vfs.h"
#include "tests/store/sqlite_env.h"

using namespace usblease;
using namespace usblease::store_test;
using store::Cause;
using store::Outcome;

namespace {

namespace fs = std::filesystem;

// ---- full: a small tmpfs that only this process sees

class SmallDisk {
 public:
  SmallDisk() : dir_(true) {
    if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", dir_.file("").c_str(), "tmpfs", 0, "size=3m") != 0) {
      std::printf("skipped: a private tmpfs is not permitted here: %s\n", std::strerror(errno));
      return;
    }
    mounted_ = true;
  }
  ~SmallDisk() {
    if (mounted_) umount2(dir_.file("").c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  [[nodiscard]] bool mounted() const { return mounted_; }
  [[nodiscard]] std::string path() const { return dir_.file("u.db"); }

  void fill() const {
    const UniqueFd fd(open(dir_.file("filler").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    const std::string page(4096, 'f');
    while (write(fd.get(), page.data(), page.size()) > 0) {
    }
  }
  void free_some() const { fs::remove(dir_.file("filler")); }

 private:
  TempDir dir_;
  bool mounted_ = false;
};

// Small values, so that writes go on until the last page of the log's last frame.
int write_until_refused(store::Store& store, TestLoop& loop, std::map<std::string, std::string>& model, int& n) {
  for (int i = 0; i < 5000; ++i) {
    const std::string key = "k/" + std::to_string(++n % 150);
    const std::string value = std::to_string(n) + std::string(static_cast<std::size_t>(n * 31 % 3000), 'v');
    const auto result = commit(store, loop, {{}, {put(key, value), put("n", std::to_string(n))}});
    if (result.outcome != Outcome::kDone) {
      ck_assert_msg(result.outcome == Outcome::kRefused && result.cause == Cause::kNoSpace, "%s",
                    result.message.c_str());
      ck_assert_msg(result.message.find("free some room") != std::string::npos, "%s", result.message.c_str());
      return i;
    }
    model[key] = value;
    model["n"] = std::to_string(n);
  }
  ck_abort_msg("the disk never became full");
}

void expect_content(store::Store& store, TestLoop& loop, const std::map<std::string, std::string>& model) {
  const auto all = read_all(store, loop);
  ck_assert_msg(all.ok, "%s", all.message.c_str());
  std::map<std::string, std::string> found;
  for (const store::Entry& entry : all.entries) found[entry.key] = entry.value;
  ck_assert(found == model);
}

START_TEST(full_disk) {
  const SmallDisk disk;
  if (!disk.mounted()) return;
  const TempDir elsewhere(true);
  TestLoop loop;
  std::map<std::string, std::string> model;
  int n = 0;
  auto store = open_store(disk.path(), loop);
  for (int round = 0; round < 4; ++round) {
    if (round > 0) disk.fill();
    write_until_refused(*store, loop, model, n);
    for (int i = 0; i < 20; ++i) write_until_refused(*store, loop, model, n);
    ck_assert(!store->health().ok);
    expect_content(*store, loop, model);
    // Killed now, it is all there elsewhere.
    put_image(elsewhere.file("copy.db"), take_image(disk.path()));
    expect_content(*open_store(elsewhere.file("copy.db"), loop), loop, model);
    if (round == 0) {
      // It is the database itself that is too large: make it small.
      for (int i = 0; i < 150; ++i) model.erase("k/" + std::to_string(i));
      store.reset();
      fs::remove(disk.path());
      fs::remove(disk.path() + "-wal");
      fs::remove(disk.path() + ".mark");
      store = open_store(disk.path(), loop);
      model.clear();
      continue;
    }
    disk.free_some();
    const auto result = commit(*store, loop, {{}, {put("room", std::to_string(round))}});
    ck_assert_msg(result.outcome == Outcome::kDone, "%s", result.message.c_str());
    model["room"] = std::to_string(round);
    ck_assert_msg(store->health().ok, "%s", store->health().message.c_str());
    expect_content(*store, loop, model);
    for (const auto& [key, value] : std::map(model)) {
      if (!key.starts_with("k/") || model.size() < 40) continue;
      ck_assert(commit(*store, loop, {{}, {erase(key)}}).outcome == Outcome::kDone);
      model.erase(key);
    }
  }
  store.reset();
  expect_content(*open_store(disk.path(), loop), loop, model);
}
END_TEST

START_TEST(start_on_a_full_disk) {
  const SmallDisk disk;
  if (!disk.mounted()) return;
  TestLoop loop;
  disk.fill();
  const auto none = store::open_sqlite_store({disk.path(), ""}, loop.executor());
  ck_assert(!none);
  disk.free_some();
  {
    const auto store = open_store(disk.path(), loop);
    ck_assert(commit(*store, loop, {{}, {put("k", "1")}}).outcome == Outcome::kDone);
  }
  disk.fill();
  {
    const auto store = open_store(disk.path(), loop);
    expect_content(*store, loop, {{"k", "1"}});
    ck_assert(commit(*store, loop, {{}, {put("k", "2")}}).cause == Cause::kNoSpace);
    disk.free_some();
    ck_assert(commit(*store, loop, {{}, {put("k", "3"), put("mine", "x", true)}}).outcome == Outcome::kDone);
  }
  disk.fill();
  const auto owned = store::open_sqlite_store({disk.path(), ""}, loop.executor());
  ck_assert(!owned && owned.error().code == ErrorCode::kUnavailable);
  disk.free_some();
  expect_content(*open_store(disk.path(), loop), loop, {{"k", "3"}});
}
END_TEST

// ---- failing: rules for the fault VFS

std::atomic<int> g_failing_syncs{0};    // of the log, the next so many
std::atomic<int> g_writes_to_fail{-1};  // of the log: fails when it has counted down to 0
std::atomic<bool> g_database_fails{false};
std::atomic<bool> g_hangs{false};

int fault_rule(Operation operation, bool log) {
  while (g_hangs && log && operation == Operation::kSync) std::this_thread::yield();
  if (log && operation == Operation::kSync && g_failing_syncs > 0) {
    --g_failing_syncs;
    return SQLITE_IOERR_FSYNC;
  }
  if (log && operation == Operation::kWrite && g_writes_to_fail >= 0 && g_writes_to_fail-- == 0)
    return SQLITE_IOERR_WRITE;
  if (!log && operation == Operation::kWrite && g_database_fails) return SQLITE_IOERR_WRITE;
  return SQLITE_OK;
}

struct FaultySession {
  TempDir dir{true};
  TestLoop loop;
  std::unique_ptr<store::Store> store;
  std::vector<store::WatchUpdate> updates;

  FaultySession() {
    install_fault_vfs();
    set_fault_rule(fault_rule);
    store = open_store(dir.file("u.db"), loop);
    store->watch("", 1, [this](store::WatchUpdate update) { updates.push_back(std::move(update)); });
    ck_assert(write("before", "1").outcome == Outcome::kDone);
  }
  store::TxnResult write(const std::string& key, const std::string& value) {
    return commit(*store, loop, {{}, {put(key, value)}});
  }
  // What a kill would leave at this moment.
  void expect_after_kill(const std::map<std::string, std::string>& model) {
    put_image(dir.file("copy.db"), take_image(dir.file("u.db")));
    expect_content(*open_store(dir.file("copy.db"), loop), loop, model);
  }
};

START_TEST(failed_sync_is_unknown_and_then_known) {
  FaultySession s;
  g_failing_syncs = 1;
  const auto result = s.write("k", "1");
  ck_assert(result.outcome == Outcome::kUnknown && !result.message.empty());
  // The log was written whole, so it did happen; the read says so, the watch too, and it stays.
  expect_content(*s.store, s.loop, {{"before", "1"}, {"k", "1"}});
  ck_assert(s.loop.run_until([&] { return s.updates.size() == 2; }));
  expect_text(s.updates[1].key, "k");
  s.expect_after_kill({{"before", "1"}, {"k", "1"}});
  ck_assert(s.write("k", "2").outcome == Outcome::kDone);
  ck_assert(s.store->health().ok);
  s.expect_after_kill({{"before", "1"}, {"k", "2"}});
}
END_TEST

START_TEST(failed_write_is_unknown_and_did_not_happen) {
  FaultySession s;
  g_writes_to_fail = 3;
  ck_assert(s.write("k", "1").outcome == Outcome::kUnknown);
  expect_content(*s.store, s.loop, {{"before", "1"}});
  s.expect_after_kill({{"before", "1"}});
  ck_assert(s.write("l", "1").outcome == Outcome::kDone);
  s.expect_after_kill({{"before", "1"}, {"l", "1"}});
  ck_assert(s.loop.run_until([&] { return s.updates.size() >= 2; }));
  expect_text(s.updates[1].key, "l");
}
END_TEST

// Until it is certain what happened, nothing is said and nothing is accepted.
START_TEST(disk_that_goes_on_failing) {
  FaultySession s;
  g_failing_syncs = 1'000'000;
  ck_assert(s.write("k", "1").outcome == Outcome::kUnknown);
  for (int i = 0; i < 3; ++i) {
    const auto read = read_all(*s.store, s.loop);
    ck_assert(!read.ok && !read.message.empty());
    const auto refused = s.write("l", "1");
    ck_assert(refused.outcome == Outcome::kRefused && refused.cause == Cause::kFailed);
  }
  ck_assert(!s.store->health().ok);
  g_failing_syncs = 0;
  expect_content(*s.store, s.loop, {{"before", "1"}, {"k", "1"}});
  ck_assert(s.write("l", "2").outcome == Outcome::kDone);
  ck_assert_msg(s.store->health().ok, "%s", s.store->health().message.c_str());
  s.expect_after_kill({{"before", "1"}, {"k", "1"}, {"l", "2"}});
}
END_TEST

START_TEST(log_that_cannot_be_moved) {
  FaultySession s;
  g_database_fails = true;
  // Each value another one all through: SQLite writes only the pages that differ.
  const auto value = [](int i) { return std::string(60'000, static_cast<char>('a' + i % 26)); };
  for (int i = 0; i < 100; ++i) ck_assert(s.write("k", value(i)).outcome == Outcome::kDone);
  ck_assert(read_all(*s.store, s.loop).ok);
  ck_assert(!s.store->health().ok);
  s.expect_after_kill({{"before", "1"}, {"k", value(99)}});
  g_database_fails = false;
  for (int i = 0; i < 10; ++i) ck_assert(s.write("k", value(i)).outcome == Outcome::kDone);
  ck_assert(read_all(*s.store, s.loop).ok);
  ck_assert_msg(s.store->health().ok, "%s", s.store->health().message.c_str());
}
END_TEST

START_TEST(disk_that_does_not_answer) {
  FaultySession s;
  s.store.reset();
  auto opened = store::open_sqlite_store({s.dir.file("u.db"), "", 150}, s.loop.executor());
  ck_assert(opened.has_value());
  s.store = std::move(*opened);
  g_hangs = true;
  int answers = 0;
  const auto begin = std::chrono::steady_clock::now();
  s.store->commit({{}, {put("k", "1")}}, [&](const store::TxnResult& r) {
    ck_assert(r.outcome == Outcome::kUnknown);
    ++answers;
  });
  ck_assert(s.loop.run_until([&] { return answers == 1; }));
  // These never began.
  s.store->commit({{}, {put("l", "1")}}, [&](const store::TxnResult& r) {
    ck_assert(r.outcome == Outcome::kRefused && r.cause == Cause::kFailed);
    ++answers;
  });
  s.store->read("", [&](const store::ReadResult& r) {
    ck_assert(!r.ok);
    ++answers;
  });
  ck_assert(s.loop.run_until([&] { return answers == 3; }));
  ck_assert(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  ck_assert(!s.store->health().ok);
  g_hangs = false;
  expect_content(*s.store, s.loop, {{"before", "1"}, {"k", "1"}});
  ck_assert_int_eq(answers, 3);
  ck_assert(s.store->health().ok);
}
END_TEST

// ---- the sweep: one fault at each operation of a life, in turn

std::atomic<int> g_operations{0};
std::atomic<int> g_fault_at{-1};
std::atomic<int> g_fault_count{1};
std::atomic<int> g_fault_code{SQLITE_IOERR_WRITE};

int sweep_rule(Operation operation, bool /*log*/) {
  const int now = g_operations++;
  if (g_fault_at < 0 || now < g_fault_at || now >= g_fault_at + g_fault_count) return SQLITE_OK;
  if (g_fault_code == SQLITE_FULL) return operation == Operation::kWrite ? SQLITE_FULL : SQLITE_OK;
  switch (operation) {
    case Operation::kRead:
      return SQLITE_IOERR_READ;
    case Operation::kWrite:
      return SQLITE_IOERR_WRITE;
    case Operation::kSync:
      return SQLITE_IOERR_FSYNC;
    case Operation::kTruncate:
      return SQLITE_IOERR_TRUNCATE;
  }
  return SQLITE_OK;
}

// Commits, reads back what is unknown, and holds the store to what it said.
class Life {
 public:
  Life(const std::string& path, std::string what)
      : path_(path), what_(std::move(what)), store_(open_store(path, loop_)) {
    store_->watch("", 1,
                  [this](const store::WatchUpdate& update) { watched_[update.key] = update.value.value_or(""); });
  }

  void write(store::Txn txn) {
    std::map<std::string, std::string> next = model_;
    for (const store::Write& one : txn.writes) next[one.key] = *one.value;
    const auto result = commit(*store_, loop_, std::move(txn));
    if (result.outcome == Outcome::kDone) model_ = next;
    if (result.outcome == Outcome::kUnknown) read_back(next);
  }

  // All that was done is there, now and after a kill; the watch has told the same.
  void end() {
    g_fault_at = -1;
    read_back(model_);
    ck_assert_msg(loop_.run_until([&] { return watched_ == model_; }, std::chrono::seconds(5)), "%s: watch differs",
                  what_.c_str());
    const auto result = commit(*store_, loop_, {{}, {put("end", "1")}});
    ck_assert_msg(result.outcome == Outcome::kDone, "%s: %s", what_.c_str(), result.message.c_str());
    model_["end"] = "1";
    put_image(path_ + ".copy", take_image(path_));
    expect_content(*open_store(path_ + ".copy", loop_), loop_, model_);
    store_.reset();
    expect_content(*open_store(path_, loop_), loop_, model_);
  }

 private:
  // A read may fail while the disk does; it must not tell anything but `model_` or, where that is open, `other`.
  void read_back(const std::map<std::string, std::string>& other) {
    for (int tries = 0; tries < 10; ++tries) {
      const auto all = read_all(*store_, loop_);
      if (!all.ok) continue;
      std::map<std::string, std::string> found;
      for (const store::Entry& entry : all.entries) found[entry.key] = entry.value;
      ck_assert_msg(found == model_ || found == other, "%s: other content than what was said", what_.c_str());
      model_ = std::move(found);
      return;
    }
    ck_abort_msg("%s: reads go on failing", what_.c_str());
  }

  std::string path_;
  std::string what_;
  TestLoop loop_;
  std::map<std::string, std::string> model_;
  std::map<std::string, std::string> watched_;
  std::unique_ptr<store::Store> store_;
};

// Returns how many operations it took.
int live(int fault_at, int count, int code) {
  const TempDir dir(true);
  g_fault_at = -1;
  const std::string what =
      "code " + std::to_string(code) + " at operation " + std::to_string(fault_at) + " +" + std::to_string(count);
  Life life(dir.file("u.db"), what);
  g_operations = 0;
  g_fault_count = count;
  g_fault_code = code;
  g_fault_at = fault_at;
  for (int i = 0; i < 4; ++i) life.write({{}, {put("a", std::to_string(i)), put("b" + std::to_string(i), "x")}});
  store::Txn large;  // makes the log long enough to be moved into the database
  for (int i = 0; i < 66; ++i) large.writes.push_back(put("large/" + std::to_string(i), std::string(64'000, 'v')));
  life.write(std::move(large));
  for (int i = 4; i < 7; ++i) life.write({{}, {put("a", std::to_string(i)), put("b" + std::to_string(i), "x")}});
  const int operations = g_operations;
  life.end();
  return operations;
}

START_TEST(one_fault_anywhere) {
  install_fault_vfs();
  set_fault_rule(sweep_rule);
  std::mt19937_64 random(20261123);
  const int all = live(-1, 0, SQLITE_OK);
  ck_assert_int_gt(all, 2000);
  const int rounds = 48;
  for (int i = 0; i < rounds; ++i) {
    // The first operations one by one, then anywhere.
    const int at = i < rounds / 2 ? i : static_cast<int>(random() % static_cast<std::uint64_t>(all));
    live(at, i % 3 == 2 ? 4 : 1, i % 4 == 3 ? SQLITE_FULL : SQLITE_IOERR_WRITE);
  }
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("sqlite-disk");
  TCase* const tcase = tcase_create("sqlite-disk");
  tcase_set_timeout(tcase, 100);
  for (const TTest* test : {full_disk, start_on_a_full_disk, failed_sync_is_unknown_and_then_known,
                            failed_write_is_unknown_and_did_not_happen, disk_that_goes_on_failing,
                            log_that_cannot_be_moved, disk_that_does_not_answer, one_fault_anywhere}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
