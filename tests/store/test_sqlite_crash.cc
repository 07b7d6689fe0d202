// kill -9 of a process that writes, at random instants, again and again on one database: nothing that was acknowledged
// is lost, and no half of a transaction is seen.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "common/fd.h"
#include "tests/store/sqlite_env.h"

using namespace usblease;
using namespace usblease::store_test;
using store::Outcome;

namespace {

constexpr std::uint64_t kPairs = 40;
constexpr std::uint64_t kOutstanding = 6;

std::uint64_t number_of(const std::string& value) { return std::strtoull(value.c_str(), nullptr, 10); }

// Transaction n: both halves of a pair and the count, of several sizes, so that some need many pages.
store::Txn transaction(std::uint64_t n) {
  const std::string pair = std::to_string(n % kPairs);
  const std::string value = std::to_string(n) + " " + std::string(n % 3 == 0 ? 30'000 : (n * 37) % 900, 'v');
  store::Txn txn{{}, {put("a/" + pair, value), put("b/" + pair, value), put("count", std::to_string(n))}};
  if (n % 11 == 0) txn.writes.push_back(put("alive", "x", true));
  if (n % 13 == 0) {
    txn.writes.push_back(erase("c/" + std::to_string(n / 13 % 3)));
    txn.writes.push_back(put("c/" + std::to_string((n / 13 + 1) % 3), value));
  }
  return txn;
}

// Commits until it is killed, and writes the number of each transaction that is done to `acks`.
[[noreturn]] void write_until_killed(const std::string& path, int acks) {
  TestLoop loop;
  auto opened = store::open_sqlite_store({path, ""}, loop.executor());
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.error().message.c_str());
    _exit(3);
  }
  store::Store& store = **opened;
  std::uint64_t next = 1;
  for (const store::Entry& entry : read_all(store, loop).entries) {
    if (entry.key == "count") next = number_of(entry.value) + 1;
  }
  std::uint64_t outstanding = 0;
  for (;;) {
    ++outstanding;
    store.commit(transaction(next), [&, n = next](const store::TxnResult& result) {
      --outstanding;
      if (result.outcome != Outcome::kDone) _exit(4);
      if (write(acks, &n, sizeof n) != sizeof n) _exit(5);
    });
    ++next;
    loop.run_until([&] { return outstanding < kOutstanding; });
  }
}

struct Round {
  std::uint64_t acknowledged = 0;
  int status = 0;
};

Round run_round(const std::string& path, bool in_memory, std::mt19937_64& random) {
  int pipe_fds[2];
  ck_assert_int_eq(pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd acks(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);
  const pid_t child = fork();
  ck_assert_int_ge(child, 0);
  if (child == 0) write_until_killed(path, write_end.get());
  write_end.reset();

  Round round;
  const bool while_it_starts = random() % 4 == 0;
  std::uint64_t n = 0;
  if (!while_it_starts && read(acks.get(), &n, sizeof n) == sizeof n) round.acknowledged = n;
  // The random instant itself, not a wait for something.
  std::this_thread::sleep_for(std::chrono::microseconds(random() % (while_it_starts ? 15'000
                                                                    : in_memory     ? 60'000
                                                                                    : 20'000)));
  kill(child, SIGKILL);
  ck_assert_int_eq(waitpid(child, &round.status, 0), child);
  while (read(acks.get(), &n, sizeof n) == sizeof n) round.acknowledged = n;
  return round;
}

// On a copy, so that the next writer finds what the kill left.
std::uint64_t check_copy(const std::string& path, const std::string& copy, const std::string& what) {
  put_image(copy, take_image(path));
  TestLoop loop;
  const auto opened = store::open_sqlite_store({copy, ""}, loop.executor());
  ck_assert_msg(opened.has_value(), "%s: %s", what.c_str(), opened ? "" : opened.error().message.c_str());
  std::map<std::string, store::Entry> entries;
  for (store::Entry& entry : read_all(**opened, loop).entries) entries[entry.key] = std::move(entry);
  std::uint64_t last = 0;
  for (std::uint64_t i = 0; i < kPairs; ++i) {
    const auto a = entries.find("a/" + std::to_string(i));
    const auto b = entries.find("b/" + std::to_string(i));
    ck_assert_msg((a == entries.end()) == (b == entries.end()), "%s: half of pair %lu", what.c_str(), i);
    if (a == entries.end()) continue;
    const bool same = a->second.value == b->second.value && a->second.mod_revision == b->second.mod_revision;
    ck_assert_msg(same, "%s: pair %lu differs", what.c_str(), i);
    last = std::max(last, number_of(a->second.value));
  }
  const std::uint64_t count = entries.contains("count") ? number_of(entries["count"].value) : 0;
  ck_assert_msg(count == last, "%s: count %lu, last pair %lu", what.c_str(), count, last);
  ck_assert_msg(!entries.contains("alive"), "%s: an owned key outlived its owner", what.c_str());
  return count;
}

void kill_again_and_again(bool in_memory, int rounds) {
  const char* const given = std::getenv("USBLEASE_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("seed %lu (USBLEASE_SEED repeats it), %d rounds %s\n", seed, rounds,
              in_memory ? "in memory" : "on the disk");
  std::fflush(stdout);
  std::mt19937_64 random(seed);
  const TempDir place(in_memory);
  const TempDir memory(true);
  const std::string path = place.file("u.db");
  std::uint64_t acknowledged = 0;
  for (int i = 0; i < rounds; ++i) {
    const Round round = run_round(path, in_memory, random);
    const std::string what = "seed " + std::to_string(seed) + ", round " + std::to_string(i);
    ck_assert_msg(WIFSIGNALED(round.status), "%s: the writer ended by itself: %d", what.c_str(),
                  WEXITSTATUS(round.status));
    acknowledged = std::max(acknowledged, round.acknowledged);
    const std::uint64_t found = check_copy(path, memory.file("copy.db"), what);
    ck_assert_msg(found >= acknowledged, "%s: %lu was acknowledged, %lu is there", what.c_str(), acknowledged, found);
    ck_assert_msg(found <= acknowledged + kOutstanding, "%s: %lu is there, %lu acknowledged", what.c_str(), found,
                  acknowledged);
    acknowledged = found;
  }
  std::printf("%lu transactions\n", acknowledged);
  ck_assert_uint_gt(acknowledged, static_cast<std::uint64_t>(rounds));
}

// Where most kills meet a process that waits for the disk,
START_TEST(killed_on_the_disk) { kill_again_and_again(false, 40); }
END_TEST
// and where they meet one that computes, and each life is long enough to move its log into the database.
START_TEST(killed_in_memory) { kill_again_and_again(true, 80); }
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("sqlite-crash");
  TCase* const tcase = tcase_create("sqlite-crash");
  tcase_set_timeout(tcase, 100);
  tcase_add_test(tcase, killed_on_the_disk);
  tcase_add_test(tcase, killed_in_memory);
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
