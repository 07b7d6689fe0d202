// The store on etcd while members are killed, frozen and cut off, while answers are lost, and with no room left.
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/store/etcd_lab.h"

namespace usblease::store_test {
namespace {

using namespace store;

using Clock = std::chrono::steady_clock;

std::unique_ptr<Store> open(const EtcdOptions& options, TestLoop& loop) {
  auto store = open_etcd_store(options, loop.executor());
  ck_assert_msg(store.has_value(), "%s", store ? "" : store.error().message.c_str());
  return std::move(*store);
}

// Again while it never began or is unknown, within a bound that only ends what hangs.
std::uint64_t commit_in_the_end(Store& store, TestLoop& loop, const Txn& txn) {
  const auto end = Clock::now() + std::chrono::seconds(30);
  for (;;) {
    const TxnResult result = commit(store, loop, txn);
    if (result.outcome == Outcome::kDone) return result.revision;
    ck_assert_msg(result.cause == Cause::kFailed && Clock::now() < end, "not done: %s", result.message.c_str());
  }
}

ReadResult read_in_the_end(Store& store, TestLoop& loop) {
  const auto end = Clock::now() + std::chrono::seconds(30);
  for (;;) {
    ReadResult result = read_all(store, loop);
    if (result.ok) return result;
    ck_assert_msg(Clock::now() < end, "nothing could be read: %s", result.message.c_str());
  }
}

std::optional<std::string> value_of(const ReadResult& result, const std::string& key) {
  for (const Entry& entry : result.entries) {
    if (entry.key == key) return entry.value;
  }
  return std::nullopt;
}

std::uint64_t revision_of(const ReadResult& result, const std::string& key) {
  for (const Entry& entry : result.entries) {
    if (entry.key == key) return entry.mod_revision;
  }
  return 0;
}

// Health is of the last calls, so it is waited for with calls.
std::string wait_for_problem(Store& store, TestLoop& loop, const std::string& word) {
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (Clock::now() < end) {
    read_all(store, loop);
    const Health health = store.health();
    if (!health.ok && health.message.find(word) != std::string::npos) return health.message;
  }
  ck_abort_msg("no \"%s\" in the health: %s", word.c_str(), store.health().message.c_str());
  return {};
}

int leader_of(const EtcdLab& lab) {
  TestLoop loop;
  const auto client = EtcdClient::open(lab.options(), loop.executor());
  ck_assert(client.has_value());
  int leader = -1;
  int answers = 0;
  for (int member = 0; member < lab.size(); ++member) {
    (*client)->status(lab.address(member), [&, member](const Result<EtcdStatus>& status) {
      ++answers;
      if (status && status->leader_id == status->member_id) leader = member;
    });
  }
  ck_assert(loop.run_until([&] { return answers == lab.size(); }));
  ck_assert_int_ge(leader, 0);
  return leader;
}

// Outcomes

START_TEST(lost_answers_are_unknown) {
  const EtcdLab lab({});
  TestLoop loop;
  EtcdBackend backend(lab);
  backend.options().call_timeout_ms = 1'000;
  const auto store = backend.open(loop.executor());
  commit_in_the_end(*store, loop, {{}, {put("k", "1")}});

  backend.relay(0).hold_answers();
  const TxnResult lost = commit(*store, loop, {{}, {put("k", "2")}});
  ck_assert_msg(lost.outcome == Outcome::kUnknown, "%s", lost.message.c_str());
  backend.relay(0).pass();
  expect_text(value_of(read_in_the_end(*store, loop), "k").value_or(""), "2");

  backend.relay(0).hold();
  const TxnResult held = commit(*store, loop, {{}, {put("k", "3")}});
  ck_assert(held.outcome == Outcome::kUnknown);
  backend.relay(0).pass();
  read_in_the_end(*store, loop);

  // What never left is refused, and does not happen later.
  backend.relay(0).cut();
  wait_for_problem(*store, loop, "does not answer");
  const TxnResult never = commit(*store, loop, {{}, {put("never", "1")}});
  ck_assert_msg(never.outcome == Outcome::kRefused && never.cause == Cause::kFailed, "%s", never.message.c_str());
  backend.relay(0).pass();
  const ReadResult after = read_in_the_end(*store, loop);
  ck_assert(!value_of(after, "never"));
  ck_assert_msg(store->health().ok, "%s", store->health().message.c_str());
}
END_TEST

START_TEST(calls_are_bounded) {
  const EtcdLab lab({});
  TestLoop loop;
  EtcdBackend backend(lab);
  backend.options().call_timeout_ms = 500;
  const auto store = backend.open(loop.executor());
  commit_in_the_end(*store, loop, {{}, {put("k", "1", true)}});
  backend.relay(0).hold();
  const auto begin = Clock::now();
  int answers = 0;
  for (int i = 0; i < 100; ++i) {
    store->commit({{}, {put("k", "2", i % 2 == 0)}}, [&](const TxnResult& r) {
      ck_assert(r.outcome != Outcome::kDone);
      ++answers;
    });
    store->read("", [&](const ReadResult& r) {
      ck_assert(!r.ok);
      ++answers;
    });
  }
  ck_assert(loop.run_until([&] { return answers == 200; }));
  ck_assert(Clock::now() - begin < std::chrono::seconds(3));
}
END_TEST

// Everything at once: whatever happens to one member, what was done stays, and a watch sees every change once or more.

struct Chaos {
  EtcdLab lab{{3, nullptr, {}}};
  std::mt19937_64 random;
  int down = -1;
  bool frozen = false;

  void next_fault() {
    if (down >= 0) {
      frozen ? lab.thaw(down) : lab.start(down);
      down = -1;
      return;
    }
    down = static_cast<int>(random() % 3);
    frozen = random() % 2 == 0;
    frozen ? lab.freeze(down) : lab.kill(down);
  }
};

START_TEST(faults_lose_nothing) {
  const char* const given = std::getenv("USBLEASE_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  Chaos chaos;
  chaos.random.seed(seed);
  TestLoop loop;
  EtcdOptions options = chaos.lab.options();
  options.call_timeout_ms = 2'000;
  const auto store = open(options, loop);
  std::uint64_t revision = commit_in_the_end(*store, loop, {{}, {put("n", "0"), put("m", "0")}});
  std::string watched;
  std::uint64_t watched_revision = 0;
  store->watch("n", revision + 1, [&](const WatchUpdate& update) {
    ck_assert(update.what == WatchUpdate::What::kChange);
    // Each change at least once and in order: the numbers have no gap.
    const int number = std::atoi(update.value->c_str());
    ck_assert_msg(update.revision >= watched_revision, "seed %lu", seed);
    const int before = watched.empty() ? 0 : std::atoi(watched.c_str());
    ck_assert_msg(number <= before + 1, "seed %lu: %d after %d", seed, number, before);
    watched_revision = update.revision;
    watched = *update.value;
  });
  int number = 0;
  int unknown = 0;
  bool late = false;  // an unknown one may still happen; a done one fences it off, as both have the same guard
  for (int round = 0; round < 60; ++round) {
    if (round % 5 == 4) chaos.next_fault();
    const std::string next = std::to_string(number + 1);
    const TxnResult result = commit(*store, loop, {{mod_is("n", revision)}, {put("n", next), put("m", next)}});
    if (result.outcome == Outcome::kDone) {
      ++number;
      revision = result.revision;
      late = false;
      continue;
    }
    unknown += result.outcome == Outcome::kUnknown ? 1 : 0;
    late |= result.outcome == Outcome::kUnknown;
    ck_assert_msg(result.cause == Cause::kFailed || late, "seed %lu, round %d: %s", seed, round,
                  result.message.c_str());
    const ReadResult now = read_in_the_end(*store, loop);
    const std::string there = *value_of(now, "n");
    expect_text(there, *value_of(now, "m"));
    ck_assert_msg(there == std::to_string(number) || (late && there == next), "seed %lu, round %d: %s instead of %d",
                  seed, round, there.c_str(), number);
    late = late && there != next;
    number = std::atoi(there.c_str());
    revision = revision_of(now, "n");
  }
  if (chaos.down >= 0) chaos.next_fault();
  const ReadResult end = read_in_the_end(*store, loop);
  expect_text(*value_of(end, "n"), std::to_string(number));
  ck_assert_msg(loop.run_until([&] { return watched == std::to_string(number); }),
                "seed %lu: the watch stays at %s, not %d", seed, watched.c_str(), number);
  ck_assert_msg(number >= 20, "seed %lu: only %d of 60 were done, %d unknown", seed, number, unknown);
}
END_TEST

// A proposal that a follower passed on to a leader that is gone is lost, and etcd says so after 7 s only.
START_TEST(lost_leader_holds_calls_for_a_moment_only) {
  for (int round = 0; round < 3; ++round) {
    EtcdLab lab({3, nullptr, {}});
    TestLoop loop;
    EtcdOptions options = lab.options();
    options.call_timeout_ms = 20'000;
    commit_in_the_end(*open(options, loop), loop, {{}, {put("k", "0")}});
    const int leader = leader_of(lab);
    std::swap(options.endpoints[0], options.endpoints[static_cast<std::size_t>((leader + 1) % 3)]);
    const auto store = open(options, loop);
    commit_in_the_end(*store, loop, {{}, {put("k", "1")}});
    lab.freeze(leader);
    const auto begin = Clock::now();
    TxnResult committed = commit(*store, loop, {{}, {put("k", "2")}});
    ck_assert(committed.outcome != Outcome::kDone || committed.revision > 0);
    read_in_the_end(*store, loop);
    ck_assert_msg(Clock::now() - begin < std::chrono::seconds(6), "a lost leader holds calls");
    lab.thaw(leader);
  }
}
END_TEST

START_TEST(lost_quorum_is_said_and_ends) {
  EtcdLab lab({3, nullptr, {}});
  TestLoop loop;
  EtcdOptions options = lab.options();
  options.call_timeout_ms = 2'000;
  const auto store = open(options, loop);
  commit_in_the_end(*store, loop, {{}, {put("k", "1")}});
  lab.kill(1);
  lab.kill(2);
  wait_for_problem(*store, loop, "has no leader");
  ck_assert(commit(*store, loop, {{}, {put("k", "2")}}).outcome == Outcome::kRefused);
  lab.start(1);
  const ReadResult after = read_in_the_end(*store, loop);
  expect_text(*value_of(after, "k"), "1");
  commit_in_the_end(*store, loop, {{}, {put("k", "3")}});
  ck_assert_msg(store->health().ok, "%s", store->health().message.c_str());
}
END_TEST

// Watches

START_TEST(watch_goes_on_after_a_cut) {
  const EtcdLab lab({});
  TestLoop loop;
  EtcdBackend backend(lab);
  const auto store = backend.open(loop.executor());
  EtcdOptions direct = backend.options();
  direct.endpoints = {lab.address(0)};
  const auto other = open(direct, loop);
  const auto first = commit_in_the_end(*store, loop, {{}, {put("k", "0")}});
  std::vector<std::string> values;
  store->watch("k", first, [&](const WatchUpdate& update) { values.push_back(update.value.value_or("?")); });
  ck_assert(loop.run_until([&] { return values.size() == 1; }));
  std::vector<std::string> expected = {"0"};
  for (int i = 1; i <= 3; ++i) {
    backend.relay(0).cut();
    for (const std::string& value : {std::to_string(10 * i), std::to_string(10 * i + 1)}) {
      commit_in_the_end(*other, loop, {{}, {put("k", value)}});
      expected.push_back(value);
    }
    backend.relay(0).pass();
    ck_assert(loop.run_until([&] { return values.size() >= expected.size(); }));
  }
  ck_assert(values == expected);
}
END_TEST

START_TEST(dropped_history_ends_watches) {
  const EtcdLab lab({});
  TestLoop loop;
  EtcdOptions options = lab.options();
  options.upkeep_every_ms = 50;
  options.history_ms = 100;
  const auto store = open(options, loop);
  const auto first = commit_in_the_end(*store, loop, {{}, {put("k", "0")}});
  set_etcd_upkeep(*store, true);
  const auto end = Clock::now() + std::chrono::seconds(20);
  bool compacted = false;
  while (!compacted) {
    ck_assert_msg(Clock::now() < end, "history is never dropped");
    const auto now = commit_in_the_end(*store, loop, {{}, {put("k", "1")}});
    std::uint64_t seen = 0;
    const WatchId id = store->watch("k", first, [&](const WatchUpdate& update) {
      compacted |= update.what == WatchUpdate::What::kCompacted;
      seen = update.revision;
    });
    ck_assert(loop.run_until([&] { return compacted || seen >= now; }));
    store->cancel_watch(id);
  }
  // As callers go on.
  const ReadResult read = read_in_the_end(*store, loop);
  std::string value;
  store->watch("k", read.revision + 1, [&](const WatchUpdate& update) { value = update.value.value_or("?"); });
  commit_in_the_end(*store, loop, {{}, {put("k", "live")}});
  ck_assert(loop.run_until([&] { return value == "live"; }));
}
END_TEST

START_TEST(damaged_record_fails_reads_and_ends_watches) {
  const EtcdLab lab({});
  TestLoop loop;
  const EtcdOptions options = lab.options();
  const auto store = open(options, loop);
  const auto first = commit_in_the_end(*store, loop, {{}, {put("fine", "1")}});
  bool ended = false;
  int changes = 0;
  store->watch("", first + 1, [&](const WatchUpdate& update) {
    update.what == WatchUpdate::What::kCompacted ? ended = true : ++changes != 0;
  });
  const std::string by_hand = "ETCDCTL_API=3 etcdctl --endpoints=" + lab.address(0) + " ";
  ck_assert(std::system((by_hand + "put " + options.key_prefix + "bad edited >/dev/null").c_str()) == 0);
  ck_assert(loop.run_until([&] { return ended; }));
  ck_assert_int_eq(changes, 0);
  const ReadResult damaged = read_all(*store, loop);
  ck_assert(!damaged.ok && damaged.message.find("bad") != std::string::npos);
  ck_assert(!store->health().ok && store->health().message.find("bad") != std::string::npos);
  ck_assert(std::system((by_hand + "del " + options.key_prefix + "bad >/dev/null").c_str()) == 0);
  ck_assert(read_all(*store, loop).ok);
  ck_assert(store->health().ok);
}
END_TEST

// The owner's lease

START_TEST(lost_lease_is_granted_anew) {
  const EtcdLab lab({});
  TestLoop loop;
  EtcdBackend backend(lab);
  const auto store = backend.open(loop.executor());
  EtcdOptions direct = backend.options();
  direct.endpoints = {lab.address(0)};
  const auto other = open(direct, loop);
  const auto first = commit_in_the_end(*store, loop, {{}, {put("alive", "1", true)}});
  bool gone = false;
  other->watch("alive", first + 1, [&](const WatchUpdate& update) { gone |= !update.value.has_value(); });
  backend.relay(0).hold();
  ck_assert_msg(loop.run_until([&] { return gone; }), "an owned key outlives its lease");
  backend.relay(0).pass();
  commit_in_the_end(*store, loop, {{}, {put("alive", "2", true)}});
  gone = false;
  // It is renewed again: it lives longer than its ttl, which another key of the same lease length proves.
  EtcdBackend dying(lab);
  auto doomed = dying.open(loop.executor());
  EtcdOptions doomed_direct = dying.options();
  doomed_direct.endpoints = {lab.address(0)};
  const auto witness = open(doomed_direct, loop);
  const auto born = commit_in_the_end(*doomed, loop, {{}, {put("dies", "1", true)}});
  bool died = false;
  witness->watch("dies", born + 1, [&](const WatchUpdate& update) { died |= !update.value.has_value(); });
  dying.end(std::move(doomed), false);
  ck_assert(loop.run_until([&] { return died; }));
  ck_assert(!gone);
  expect_text(value_of(read_in_the_end(*store, loop), "alive").value_or("gone"), "2");
}
END_TEST

// No room

START_TEST(no_space_is_said_and_ends_by_itself) {
  const EtcdLab lab({1, nullptr, {"--quota-backend-bytes=4194304"}});
  TestLoop loop;
  EtcdOptions options = lab.options();
  options.upkeep_every_ms = 100;
  options.defragment_bytes = 1024UL * 1024;
  const auto store = open(options, loop);
  commit_in_the_end(*store, loop, {{}, {put("k", "0")}});
  // The same key again and again: all of it but the last is history.
  std::optional<TxnResult> full;
  for (int i = 0; i < 400 && !full; ++i) {
    TxnResult result = commit(*store, loop, {{}, {put("k", std::string(60'000, 'v'))}});
    if (result.outcome != Outcome::kDone) full = std::move(result);
  }
  ck_assert_msg(full.has_value(), "etcd took more than its quota");
  ck_assert_msg(full->outcome == Outcome::kRefused && full->cause == Cause::kNoSpace, "%s", full->message.c_str());
  ck_assert(!store->health().ok);
  ck_assert(read_all(*store, loop).ok);
  set_etcd_upkeep(*store, true);
  const auto end = Clock::now() + std::chrono::seconds(30);
  while (commit(*store, loop, {{}, {put("k", "small")}}).outcome != Outcome::kDone) {
    ck_assert_msg(Clock::now() < end, "there is never room again: %s", store->health().message.c_str());
  }
}
END_TEST

// What is not ours

START_TEST(other_clusters_and_strangers_are_not_used) {
  const Certificates ours("ours");
  const Certificates theirs("theirs");
  const EtcdLab lab({1, &ours, {}});
  TestLoop loop;
  EtcdOptions options = lab.options();
  options.call_timeout_ms = 1'000;
  options.etcd_cluster_id = 4711;
  const auto other = open(options, loop);
  wait_for_problem(*other, loop, "another etcd cluster");
  ck_assert(commit(*other, loop, {{}, {put("k", "1")}}).outcome == Outcome::kRefused);

  EtcdOptions stranger = lab.options();
  stranger.call_timeout_ms = 1'000;
  stranger.cert_file = theirs.cert();
  stranger.key_file = theirs.key();
  const auto unknown = open(stranger, loop);
  wait_for_problem(*unknown, loop, "does not answer");
  ck_assert(commit(*unknown, loop, {{}, {put("k", "1")}}).outcome == Outcome::kRefused);

  const auto right = open(lab.options(), loop);
  ck_assert_uint_eq(read_in_the_end(*right, loop).entries.size(), 0);
}
END_TEST

START_TEST(bad_options_are_refused) {
  TestLoop loop;
  EtcdOptions options;
  options.endpoints = {"127.0.0.1:2379"};
  options.key_prefix = "/usblease/";
  const auto refused = [&](const EtcdOptions& bad, ErrorCode code) {
    const auto store = open_etcd_store(bad, loop.executor());
    ck_assert(!store && store.error().code == code && !store.error().message.empty());
  };
  EtcdOptions bad = options;
  bad.endpoints.clear();
  refused(bad, ErrorCode::kBadInput);
  bad = options;
  bad.key_prefix = "";
  refused(bad, ErrorCode::kBadInput);
  bad.key_prefix = std::string("a\0b", 3);
  refused(bad, ErrorCode::kBadInput);
  bad = options;
  bad.ca_file = "/nowhere/ca.pem";
  refused(bad, ErrorCode::kBadInput);
  bad.cert_file = bad.key_file = bad.ca_file;
  refused(bad, ErrorCode::kUnavailable);
  bad = options;
  bad.call_timeout_ms = 0;
  refused(bad, ErrorCode::kBadInput);
}
END_TEST

}  // namespace
}  // namespace usblease::store_test

int main() {
  using namespace usblease::store_test;
  Suite* const suite = suite_create("etcd-faults");
  TCase* const tcase = tcase_create("etcd-faults");
  tcase_set_timeout(tcase, 120);
  for (const TTest* test :
       {lost_answers_are_unknown, calls_are_bounded, faults_lose_nothing, lost_leader_holds_calls_for_a_moment_only,
        lost_quorum_is_said_and_ends, watch_goes_on_after_a_cut, dropped_history_ends_watches,
        damaged_record_fails_reads_and_ends_watches, lost_lease_is_granted_anew, no_space_is_said_and_ends_by_itself,
        other_clusters_and_strangers_are_not_used, bad_options_are_refused}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
