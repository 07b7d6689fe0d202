// One flipped bit or a cut anywhere in the files of a database, after a clean end and after a kill: it is refused at
// start with a message that names the file, or it was in a place that means nothing, and then all content is equal.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>

#include "tests/store/sqlite_env.h"

using namespace usblease;
using namespace usblease::store_test;
using store::Outcome;

namespace {

struct Sample {
  Image image;
  std::vector<store::Entry> entries;
};

store::Txn random_txn(std::mt19937_64& random) {
  store::Txn txn;
  const std::uint64_t first = random() % 60;
  for (std::uint64_t i = 0; i < 3; ++i) {
    const std::string key = "device/" + std::to_string(first + 20 * i);
    const std::size_t size = random() % 12 == 0 ? 9000 : random() % 500;
    txn.writes.push_back(random() % 6 == 0 ? erase(key)
                                           : put(key, std::string(size, static_cast<char>('a' + random() % 26))));
  }
  return txn;
}

// Two lives: what the first wrote is in the database, what the second wrote is in the log when it is killed.
Sample make_sample(bool clean, std::mt19937_64& random) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  TestLoop loop;
  Sample sample;
  for (const bool last : {false, true}) {
    auto store = open_store(path, loop);
    for (int i = 0; i < (last ? 12 : 80); ++i) {
      ck_assert(commit(*store, loop, random_txn(random)).outcome == Outcome::kDone);
    }
    sample.entries = read_all(*store, loop).entries;
    if (last && !clean) sample.image = take_image(path);
    store.reset();
    if (last && clean) sample.image = take_image(path);
  }
  // The room behind the log's last frame is zeros: two frames of it are enough to flip bits in.
  std::string& log = sample.image["-wal"];
  const std::size_t end = log.find_last_not_of('\0');
  if (end != std::string::npos) log.resize(std::min(log.size(), end + 8240));
  if (log.empty()) sample.image.erase("-wal");
  return sample;
}

struct Tally {
  int refused = 0;
  int harmless = 0;
};

void try_open(const std::string& path, const Sample& sample, const std::string& what, Tally& tally) {
  TestLoop loop;
  Image before = take_image(path);
  auto opened = store::open_sqlite_store({path, ""}, loop.executor());
  if (!opened) {
    const Error& error = opened.error();
    ck_assert_msg(error.code == ErrorCode::kRefused, "%s: another error: %s", what.c_str(), error.message.c_str());
    ck_assert_msg(error.message.find(path) != std::string::npos, "%s: no path in: %s", what.c_str(),
                  error.message.c_str());
    // All is as it was, for whoever looks at it now.
    Image after = take_image(path);
    if (after["-wal"].empty()) after.erase("-wal");
    if (before["-wal"].empty()) before.erase("-wal");
    ck_assert_msg(after == before, "%s: refused, but the files were changed", what.c_str());
    ++tally.refused;
    return;
  }
  const auto all = read_all(**opened, loop);
  ck_assert_msg(all.ok, "%s: opened, but: %s", what.c_str(), all.message.c_str());
  ck_assert_msg(same_entries(all.entries, sample.entries), "%s: opened with other content", what.c_str());
  ck_assert_msg(commit(**opened, loop, {{}, {put("new", "x")}}).outcome == Outcome::kDone, "%s: cannot write",
                what.c_str());
  ++tally.harmless;
}

Tally flip_bits(const Sample& sample, const std::string& suffix, int times, std::mt19937_64& random) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  Tally tally;
  const std::size_t size = sample.image.at(suffix).size();
  for (int i = 0; i < times; ++i) {
    Image image = sample.image;
    // A third in the first page, where the headers are.
    const std::size_t at = random() % (i % 3 == 0 ? std::min<std::size_t>(size, 120) : size);
    const auto bit = static_cast<int>(random() % 8);
    image[suffix][at] = static_cast<char>(image[suffix][at] ^ (1 << bit));
    put_image(path, image);
    try_open(path, sample, "\"" + suffix + "\" byte " + std::to_string(at) + " bit " + std::to_string(bit), tally);
  }
  return tally;
}

Tally cut_files(const Sample& sample, const std::string& suffix, int times, std::mt19937_64& random) {
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  Tally tally;
  const std::size_t size = sample.image.at(suffix).size();
  for (int i = 0; i < times; ++i) {
    Image image = sample.image;
    std::size_t left = random() % size;
    if (i % 3 == 0) left -= left % 4096;
    if (i == 1) left = 0;
    if (i == 2) left = size - 1;
    image[suffix].resize(left);
    put_image(path, image);
    try_open(path, sample, "\"" + suffix + "\" cut to " + std::to_string(left), tally);
  }
  return tally;
}

std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* const given = std::getenv("USBLEASE_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  }();
  return value;
}

void report(const char* what, const Tally& tally) {
  std::printf("seed %lu, %s: %d refused, %d harmless\n", seed(), what, tally.refused, tally.harmless);
  std::fflush(stdout);
}

void check_all(bool clean, int database_flips, int log_flips, int mark_flips) {
  std::mt19937_64 random(seed() + (clean ? 0 : 1));
  const Sample sample = make_sample(clean, random);
  const std::string life = clean ? "after a clean end, " : "after a kill, ";
  const auto run = [&](const std::string& suffix, const std::string& name, int flips) {
    const Tally flipped = flip_bits(sample, suffix, flips, random);
    report((life + "flipped in the " + name).c_str(), flipped);
    // After a kill the log may hold every page of the database: damage to the database alone is then repaired from it.
    const bool log_holds_all = !clean && suffix.empty();
    if (!log_holds_all) ck_assert_int_gt(flipped.refused, flips / 10);
    const Tally cut = cut_files(sample, suffix, 40, random);
    report((life + "cut: the " + name).c_str(), cut);
    if (!log_holds_all) ck_assert_int_gt(cut.refused, 20);
  };
  run("", "database", database_flips);
  if (clean) {
    ck_assert(!sample.image.contains("-wal"));
  } else {
    run("-wal", "log", log_flips);
  }
  run(".mark", "mark", mark_flips);
}

START_TEST(after_a_clean_end) { check_all(true, 500, 0, 60); }
END_TEST
START_TEST(after_a_kill) { check_all(false, 300, 500, 60); }
END_TEST

// The last transaction's frames: to SQLite alone a flip there looks like the torn tail of a crash.
START_TEST(tail_of_the_log) {
  std::mt19937_64 random(seed() + 2);
  const Sample sample = make_sample(false, random);
  const TempDir dir(true);
  const std::string path = dir.file("u.db");
  const std::size_t used = sample.image.at("-wal").find_last_not_of('\0') + 1;
  Tally tally;
  for (int i = 0; i < 150; ++i) {
    Image image = sample.image;
    const std::size_t at = used - 1 - random() % 3000;
    image["-wal"][at] = static_cast<char>(image["-wal"][at] ^ (1 << (random() % 8)));
    put_image(path, image);
    try_open(path, sample, "log byte " + std::to_string(at) + " of " + std::to_string(used), tally);
  }
  report("tail of the log", tally);
  ck_assert_int_eq(tally.harmless, 0);
}
END_TEST

}  // namespace

int main() {
  seed();  // one for all tests, which run in processes of their own
  Suite* const suite = suite_create("sqlite-damage");
  TCase* const tcase = tcase_create("sqlite-damage");
  tcase_set_timeout(tcase, 100);
  for (const TTest* test : {after_a_clean_end, after_a_kill, tail_of_the_log}) tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
