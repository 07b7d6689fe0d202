#include "tests/store/contract.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace usblease::store_test {
namespace {

using namespace store;  // every other word here is the contract's

Implementation g_implementation;

constexpr auto kChange = WatchUpdate::What::kChange;

class ContractSession : public Session {
 public:
  ContractSession() : Session(g_implementation.make) {}

  // The value of an exact key, or nullopt.
  std::optional<Entry> get(const std::string& key) {
    for (Entry& entry : read(key).entries) {
      if (entry.key == key) return std::move(entry);
    }
    return std::nullopt;
  }

  void expect_refused(Txn txn, Cause cause) {
    const TxnResult result = commit(std::move(txn));
    ck_assert_msg(result.outcome == Outcome::kRefused, "not refused: %s", result.message.c_str());
    ck_assert_msg(result.cause == cause, "another cause: %s", result.message.c_str());
    ck_assert(!result.message.empty());
  }

  // An owned key may linger; then it must go.
  bool vanishes(const std::string& key) {
    constexpr std::chrono::milliseconds kStep(20);
    const std::chrono::milliseconds most(owned_linger_ms() + 200);
    for (std::chrono::milliseconds waited(0); get(key); waited += kStep) {
      if (waited > most) return false;
      pass(kStep);  // the wait that the contract grants
    }
    return true;
  }
};

// 1. Order

START_TEST(put_then_read) {
  ContractSession s;
  const std::string bytes("\0\xff plain \n", 10);
  const auto first = s.done({{}, {put("a/1", bytes), put("a/2", "")}});
  const auto second = s.done({{}, {put("a/1", "new")}});
  const ReadResult all = s.read("a/");
  ck_assert(all.ok);
  ck_assert_uint_ge(all.revision, second);
  ck_assert_uint_eq(all.entries.size(), 2);
  expect_text(all.entries[0].value, "new");
  ck_assert_uint_eq(all.entries[0].create_revision, first);
  ck_assert_uint_eq(all.entries[0].mod_revision, second);
  ck_assert(all.entries[1].value.empty());
  ck_assert_uint_eq(all.entries[1].mod_revision, first);
  s.done({{}, {put("a/1", bytes)}});
  ck_assert(s.get("a/1")->value == bytes);
}
END_TEST

START_TEST(revisions_increase) {
  ContractSession s;
  std::uint64_t last = 0;
  for (int i = 0; i < 20; ++i) {
    const auto revision = s.done({{}, {put("k" + std::to_string(i % 3), "v")}});
    ck_assert_uint_gt(revision, last);
    last = revision;
    // What changes nothing is done at the present revision.
    ck_assert_uint_ge(s.done({{}, {erase("absent")}}), last);
    ck_assert_uint_ge(s.done({{mod_is("k" + std::to_string(i % 3), revision)}, {}}), last);
  }
  ck_assert_uint_gt(s.done({{}, {erase("k1")}}), last);
}
END_TEST

START_TEST(reads_see_what_was_before_them) {
  ContractSession s;
  constexpr int kRounds = 100;
  int answers = 0;
  for (int i = 0; i < kRounds; ++i) {
    s.store().commit({{}, {put("x", std::to_string(i)), put("y", std::to_string(i))}}, [&](const TxnResult& r) {
      ck_assert(r.outcome == Outcome::kDone);
      ++answers;
    });
    s.store().read("", [&, i](const ReadResult& r) {
      ck_assert(r.ok);
      ck_assert_uint_eq(r.entries.size(), 2);
      // One caller's calls begin in their order, so this read saw its own commit; later ones may have run too.
      ck_assert_int_ge(std::atoi(r.entries[0].value.c_str()), i);
      expect_text(r.entries[0].value, r.entries[1].value);
      ck_assert_uint_eq(r.entries[0].mod_revision, r.entries[1].mod_revision);
      ++answers;
    });
  }
  ck_assert(s.loop().run_until([&] { return answers == 2 * kRounds; }));
}
END_TEST

// 2. Guards

START_TEST(guards_by_modification) {
  ContractSession s;
  const auto first = s.done({{mod_is("k", 0)}, {put("k", "1")}});
  s.expect_refused({{mod_is("k", 0)}, {put("k", "2")}}, Cause::kGuard);
  const auto second = s.done({{mod_is("k", first)}, {put("k", "2")}});
  s.expect_refused({{mod_is("k", first)}, {put("k", "3")}}, Cause::kGuard);
  s.expect_refused({{mod_is("absent", first)}, {put("k", "3")}}, Cause::kGuard);
  expect_text(s.get("k")->value, "2");
  s.done({{mod_is("k", second)}, {erase("k")}});
  s.expect_refused({{mod_is("k", second)}, {put("k", "3")}}, Cause::kGuard);
  s.done({{mod_is("k", 0)}, {put("k", "4")}});
}
END_TEST

START_TEST(guards_by_creation) {
  ContractSession s;
  const auto first = s.done({{create_is("k", 0)}, {put("k", "1")}});
  s.expect_refused({{create_is("k", 0)}, {put("k", "2")}}, Cause::kGuard);
  s.done({{create_is("k", first)}, {put("k", "2")}});
  s.done({{create_is("k", first)}, {put("k", "3")}});
  s.done({{}, {erase("k")}});
  s.expect_refused({{create_is("k", first)}, {put("k", "4")}}, Cause::kGuard);
  const auto again = s.done({{create_is("k", 0)}, {put("k", "5")}});
  ck_assert_uint_gt(again, first);
  ck_assert_uint_eq(s.get("k")->create_revision, again);
}
END_TEST

START_TEST(all_or_nothing) {
  ContractSession s;
  const auto first = s.done({{}, {put("a", "1"), put("b", "1"), put("c", "1")}});
  s.expect_refused({{mod_is("a", first), mod_is("b", first + 1)}, {put("a", "2"), erase("c"), put("d", "2")}},
                   Cause::kGuard);
  const ReadResult all = s.read("");
  ck_assert_uint_eq(all.entries.size(), 3);
  for (const Entry& entry : all.entries) ck_assert_uint_eq(entry.mod_revision, first);
  const auto second = s.done({{mod_is("a", first), mod_is("b", first)}, {put("a", "2"), erase("c"), put("d", "2")}});
  ck_assert(!s.get("c"));
  ck_assert_uint_eq(s.get("a")->mod_revision, second);
  ck_assert_uint_eq(s.get("d")->mod_revision, second);
}
END_TEST

START_TEST(one_of_many_wins) {
  ContractSession s;
  constexpr int kCallers = 60;
  int answers = 0;
  std::vector<int> winners;
  for (int i = 0; i < kCallers; ++i) {
    s.store().commit({{mod_is("prize", 0)}, {put("prize", std::to_string(i)), put("seen/" + std::to_string(i), "")}},
                     [&, i](const TxnResult& r) {
                       ++answers;
                       if (r.outcome == Outcome::kDone) winners.push_back(i);
                       if (r.outcome != Outcome::kDone) ck_assert(r.cause == Cause::kGuard);
                     });
  }
  ck_assert(s.loop().run_until([&] { return answers == kCallers; }));
  ck_assert_uint_eq(winners.size(), 1);
  expect_text(s.get("prize")->value, std::to_string(winners[0]));
  ck_assert_uint_eq(s.read("seen/").entries.size(), 1);
}
END_TEST

START_TEST(deletes) {
  ContractSession s;
  s.done({{}, {erase("never")}});
  s.done({{}, {put("k", "1")}});
  s.done({{}, {erase("k"), put("l", "1")}});
  ck_assert(!s.get("k"));
  s.done({{}, {erase("k")}});
  ck_assert(s.get("l"));
}
END_TEST

// The border

START_TEST(bounds) {
  ContractSession s;
  const std::string longest_key(kKeyMax, 'k');
  const std::string longest_value(kValueMax, 'v');
  s.done({{}, {put(longest_key, longest_value)}});
  ck_assert(s.get(longest_key)->value == longest_value);
  s.expect_refused({{}, {put("fine", ""), put(longest_key + "k", "")}}, Cause::kTooLarge);
  s.expect_refused({{}, {put("fine", ""), put("k", longest_value + "v")}}, Cause::kTooLarge);
  s.expect_refused({{}, {put("fine", ""), put("", "")}}, Cause::kTooLarge);
  s.expect_refused({{}, {put("fine", ""), put(std::string("a\0b", 3), "")}}, Cause::kTooLarge);
  s.expect_refused({{}, {put("fine", "1"), put("fine", "2")}}, Cause::kTooLarge);
  s.expect_refused({{}, {put("fine", "1"), erase("fine")}}, Cause::kTooLarge);
  s.expect_refused({{mod_is(longest_key + "k", 0)}, {put("fine", "")}}, Cause::kTooLarge);
  s.expect_refused({{mod_is("", 0)}, {put("fine", "")}}, Cause::kTooLarge);
  ck_assert(!s.get("fine"));
}
END_TEST

START_TEST(operations_in_one_transaction) {
  ContractSession s;
  Txn most;
  for (std::size_t i = 0; i < kTxnOpsMax / 2; ++i) {
    most.guards.push_back(mod_is("k" + std::to_string(i), 0));
    most.writes.push_back(put("k" + std::to_string(i), std::to_string(i)));
  }
  Txn too_many = most;
  too_many.writes.push_back(put("one more", ""));
  s.expect_refused(too_many, Cause::kTooLarge);
  ck_assert_uint_eq(s.read("").entries.size(), 0);
  s.done(most);
  ck_assert_uint_eq(s.read("").entries.size(), kTxnOpsMax / 2);
}
END_TEST

START_TEST(prefixes) {
  ContractSession s;
  const std::vector<std::string> keys = {"a",     "a/",          "a/b", "a/b/c", "a0",      "b",
                                         "b\xff", "b\xff\xff/x", "c",   "\xff",  "\xff\xff"};
  Txn txn;
  for (const std::string& key : keys) txn.writes.push_back(put(key, key));
  const auto revision = s.done(txn);
  const std::set<std::string> sorted(keys.begin(), keys.end());
  for (const std::string prefix :
       {"", "a", "a/", "a/b", "b", "b\xff", "b\xff\xff", "\xff", "\xff\xff", "\xff\xff\xff", "none"}) {
    std::vector<std::string> expected;
    for (const std::string& key : sorted) {
      if (key.starts_with(prefix)) expected.push_back(key);
    }
    const ReadResult got = s.read(prefix);
    ck_assert(got.ok);
    ck_assert_uint_ge(got.revision, revision);
    ck_assert_uint_eq(got.entries.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) ck_assert(got.entries[i].key == expected[i]);
  }
}
END_TEST

// 4. Owned keys

void check_owned(bool clean) {
  ContractSession s;
  s.done({{}, {put("lives", "1"), put("dies", "1", true), put("kept", "1", true), put("taken", "1")}});
  const auto second = s.done({{}, {put("kept", "2"), put("taken", "2", true)}});
  ck_assert(s.get("dies"));
  const auto dies = s.get("dies")->create_revision;
  s.reopen(clean);
  ck_assert(s.vanishes("dies"));
  ck_assert(s.vanishes("taken"));
  expect_text(s.get("lives")->value, "1");
  expect_text(s.get("kept")->value, "2");
  s.expect_refused({{create_is("dies", dies)}, {put("lives", "2")}}, Cause::kGuard);
  ck_assert_uint_gt(s.done({{create_is("dies", 0)}, {put("dies", "2", true)}}), second);
}

START_TEST(owned_keys_die_at_a_clean_end) { check_owned(true); }
END_TEST
START_TEST(owned_keys_die_with_a_kill) { check_owned(false); }
END_TEST

// 3. Outcomes: what is done is durable

void check_durable(bool clean) {
  ContractSession s;
  std::uint64_t last = 0;
  for (int i = 0; i < 50; ++i) {
    last = s.done(
        {{}, {put("k/" + std::to_string(i), std::string(static_cast<std::size_t>(i) * 100, 'x')), put("n", "")}});
  }
  s.done({{}, {erase("k/7")}});
  const ReadResult before = s.read("");
  s.reopen(clean);
  const ReadResult after = s.read("");
  ck_assert(after.ok);
  ck_assert(same_entries(before.entries, after.entries));
  ck_assert_uint_ge(after.revision, before.revision);
  ck_assert_uint_gt(s.done({{mod_is("n", last)}, {put("n", "2")}}), before.revision);
}

START_TEST(durable_over_a_clean_end) { check_durable(true); }
END_TEST
START_TEST(durable_over_a_kill) { check_durable(false); }
END_TEST

START_TEST(outstanding_calls_are_completed) {
  std::map<int, TxnResult> answers;
  std::unique_ptr<Session> s = std::make_unique<ContractSession>();
  constexpr int kCalls = 100;
  int reads = 0;
  for (int i = 0; i < kCalls; ++i) {
    s->store().commit({{}, {put("k/" + std::to_string(i), "v")}},
                      [&answers, i](TxnResult r) { answers[i] = std::move(r); });
    s->store().read("none", [&reads](const ReadResult&) { ++reads; });
  }
  s->reopen(true);
  ck_assert(s->loop().run_until([&] { return answers.size() == kCalls && reads == kCalls; }));
  std::set<std::string> there;
  for (const Entry& entry : s->read("k/").entries) there.insert(entry.key);
  for (const auto& [i, result] : answers) {
    const bool found = there.contains("k/" + std::to_string(i));
    if (result.outcome == Outcome::kDone) ck_assert(found);
    if (result.outcome == Outcome::kRefused) ck_assert(!found);
  }
}
END_TEST

// 5. Watches

struct Seen {
  std::vector<WatchUpdate> updates;
  std::function<void(WatchUpdate)> callback() {
    return [this](WatchUpdate update) { updates.push_back(std::move(update)); };
  }
  [[nodiscard]] bool compacted() const {
    return !updates.empty() && updates.back().what == WatchUpdate::What::kCompacted;
  }
};

START_TEST(watch_live) {
  ContractSession s;
  const auto start = s.read("").revision;
  Seen all;
  Seen some;
  s.store().watch("", start + 1, all.callback());
  s.store().watch("a/", start + 1, some.callback());
  const auto r1 = s.done({{}, {put("a/1", "x"), put("b/1", "y")}});
  const auto r2 = s.done({{}, {erase("a/1")}});
  s.expect_refused({{mod_is("a/1", 1)}, {put("a/1", "no")}}, Cause::kGuard);
  s.done({{}, {erase("a/absent")}});
  const auto r3 = s.done({{}, {put("b/1", "z")}});
  ck_assert(s.loop().run_until([&] { return !all.updates.empty() && all.updates.back().revision == r3; }));
  ck_assert(s.loop().run_until([&] { return some.updates.size() >= 2; }));
  ck_assert_uint_eq(all.updates.size(), 4);
  ck_assert_uint_eq(some.updates.size(), 2);
  ck_assert(some.updates[0].what == kChange && some.updates[0].key == "a/1" && some.updates[0].value == "x");
  ck_assert_uint_eq(some.updates[0].revision, r1);
  ck_assert(some.updates[1].what == kChange && some.updates[1].key == "a/1" && !some.updates[1].value);
  ck_assert_uint_eq(some.updates[1].revision, r2);
}
END_TEST

// The way in which callers use it: read, watch from there, and begin again when that is told too late.
START_TEST(read_then_watch_misses_nothing) {
  ContractSession s;
  constexpr int kChanges = 300;
  int answers = 0;
  std::map<std::string, std::string> model;
  std::uint64_t seen_revision = 0;
  std::function<void()> begin = [&] {
    s.store().read("k/", [&](const ReadResult& r) {
      ck_assert(r.ok);
      model.clear();
      for (const Entry& entry : r.entries) model[entry.key] = entry.value;
      seen_revision = r.revision;
      s.store().watch("k/", r.revision + 1, [&](const WatchUpdate& update) {
        if (update.what == WatchUpdate::What::kCompacted) return begin();
        ck_assert_uint_ge(update.revision, seen_revision);
        seen_revision = update.revision;
        if (update.value) {
          model[update.key] = *update.value;
        } else {
          model.erase(update.key);
        }
      });
    });
  };
  std::uint64_t last = 0;
  for (int i = 0; i < kChanges; ++i) {
    if (i == kChanges / 2) begin();
    const std::string key = "k/" + std::to_string(i % 17);
    Write write = i % 5 == 4 ? erase(key) : put(key, std::to_string(i));
    s.store().commit({{}, {std::move(write)}}, [&](const TxnResult& r) {
      ++answers;
      ck_assert(r.outcome == Outcome::kDone);
      last = std::max(last, r.revision);
    });
  }
  ck_assert(s.loop().run_until([&] { return answers == kChanges && seen_revision >= last; }));
  std::map<std::string, std::string> truth;
  for (const Entry& entry : s.read("k/").entries) truth[entry.key] = entry.value;
  ck_assert(model == truth);
}
END_TEST

START_TEST(watch_from_the_past) {
  ContractSession s;
  const auto first = s.done({{}, {put("k", "1")}});
  for (int i = 2; i <= 5; ++i) s.done({{}, {put("k", std::to_string(i))}});
  s.reopen(true);
  const auto last = s.done({{}, {put("k", "6")}});
  Seen seen;
  s.store().watch("k", first, seen.callback());
  ck_assert(s.loop().run_until([&] { return seen.compacted() || seen.updates.size() >= 6; }));
  if (seen.compacted()) {
    ck_assert_uint_eq(seen.updates.size(), 1);
    s.done({{}, {put("k", "7")}});
    s.read("");
    ck_assert_uint_eq(seen.updates.size(), 1);  // it has ended
    return;
  }
  for (std::size_t i = 0; i < 6; ++i) ck_assert(seen.updates[i].value == std::to_string(i + 1));
  ck_assert_uint_eq(seen.updates[5].revision, last);
}
END_TEST

START_TEST(watch_of_the_future) {
  ContractSession s;
  const auto now = s.done({{}, {put("k", "1")}});
  Seen seen;
  s.store().watch("k", now + 2, seen.callback());
  s.done({{}, {put("k", "2")}});
  const auto last = s.done({{}, {put("k", "3")}});
  ck_assert(s.loop().run_until([&] { return !seen.updates.empty(); }));
  ck_assert(seen.updates.front().what == kChange);
  ck_assert_uint_eq(seen.updates.front().revision, last);
}
END_TEST

START_TEST(cancelled_watches_are_silent) {
  ContractSession s;
  const auto now = s.read("").revision;
  Seen seen;
  Seen witness;
  int once = 0;
  const WatchId id = s.store().watch("", now + 1, seen.callback());
  WatchId self = 0;
  self = s.store().watch("", now + 1, [&](const WatchUpdate&) {
    ++once;
    s.store().cancel_watch(self);
  });
  s.store().watch("", now + 1, witness.callback());
  s.store().commit({{}, {put("k", "1")}}, [](const TxnResult&) {});
  s.store().commit({{}, {put("k", "2")}}, [](const TxnResult&) {});
  s.store().cancel_watch(id);  // although updates may be on their way
  s.store().cancel_watch(id);
  s.store().cancel_watch(987654);
  // One watch may lag behind another.
  ck_assert(s.loop().run_until([&] { return witness.updates.size() == 2 && once != 0; }));
  ck_assert_uint_eq(seen.updates.size(), 0);
  ck_assert_int_eq(once, 1);
}
END_TEST

// 6. Callbacks

START_TEST(callbacks_come_from_the_loop_once) {
  ContractSession s;
  const std::thread::id here = std::this_thread::get_id();
  bool inside_call = false;
  std::map<int, int> answers;
  const auto check = [&](int call) {
    ck_assert_msg(!inside_call, "called back inside the call");
    ck_assert_msg(s.loop().running() && std::this_thread::get_id() == here, "called back beside the executor");
    ++answers[call];
  };
  const auto call = [&](auto&& body) {
    inside_call = true;
    body();
    inside_call = false;
  };
  call([&] { s.store().watch("", s.read("").revision + 1, [&](const WatchUpdate&) { check(0); }); });
  call([&] { s.store().commit({{}, {put("k", "1")}}, [&](const TxnResult&) { check(1); }); });
  call([&] { s.store().commit({{mod_is("k", 9999)}, {}}, [&](const TxnResult&) { check(2); }); });
  call([&] { s.store().commit({{}, {put("", "1")}}, [&](const TxnResult&) { check(3); }); });
  call([&] { s.store().commit({{}, {}}, [&](const TxnResult&) { check(4); }); });
  call([&] { s.store().read("k", [&](const ReadResult&) { check(5); }); });
  call([&] {
    s.store().read(std::string(kKeyMax + 1, 'k'), [&](const ReadResult& r) {
      ck_assert(!r.ok);
      check(6);
    });
  });
  ck_assert(s.loop().run_until([&] { return answers.size() == 7; }));
  s.read("");
  s.loop().run_posted();
  for (const auto& [which, times] : answers) ck_assert_msg(times == 1, "call %d was answered %d times", which, times);
}
END_TEST

START_TEST(calls_from_callbacks) {
  ContractSession s;
  int left = 50;
  bool finished = false;
  std::function<void()> next = [&] {
    s.store().commit({{}, {put("k", std::to_string(left))}}, [&](const TxnResult& r) {
      ck_assert(r.outcome == Outcome::kDone);
      if (--left > 0) return next();
      finished = true;
    });
  };
  next();
  ck_assert(s.loop().run_until([&] { return finished; }));
  expect_text(s.get("k")->value, "1");
}
END_TEST

START_TEST(healthy_and_named) {
  ContractSession s;
  s.done({{}, {put("k", "1")}});
  ck_assert_msg(s.store().health().ok, "%s", s.store().health().message.c_str());
  ck_assert(!s.store().describe().empty());
}
END_TEST

// All of it at random against a map.

struct Model {
  std::map<std::string, Entry> entries;

  bool guards_hold(const Txn& txn) const {
    return std::all_of(txn.guards.begin(), txn.guards.end(), [&](const Guard& guard) {
      const auto found = entries.find(guard.key);
      if (found == entries.end()) return guard.revision == 0;
      const Entry& entry = found->second;
      return guard.revision == (guard.what == Guard::What::kModRevision ? entry.mod_revision : entry.create_revision);
    });
  }

  void apply(const Txn& txn, std::uint64_t revision) {
    for (const Write& write : txn.writes) {
      if (!write.value) {
        entries.erase(write.key);
        continue;
      }
      Entry& entry = entries[write.key];
      if (entry.create_revision == 0) entry = {write.key, {}, revision, 0};
      entry.value = *write.value;
      entry.mod_revision = revision;
    }
  }

  [[nodiscard]] std::vector<Entry> all() const {
    std::vector<Entry> out;
    for (const auto& [key, entry] : entries) out.push_back(entry);
    return out;
  }
};

Txn random_txn(std::mt19937_64& random, const Model& model) {
  const auto below = [&](std::uint64_t n) { return random() % n; };
  const auto key = [&] { return "k/" + std::to_string(below(30)); };
  Txn txn;
  for (std::uint64_t i = below(3); i > 0; --i) {
    Guard guard = below(2) == 0 ? mod_is(key(), 0) : create_is(key(), 0);
    const auto found = model.entries.find(guard.key);
    // Mostly right, sometimes wrong.
    if (found != model.entries.end() && below(5) != 0) {
      guard.revision =
          guard.what == Guard::What::kModRevision ? found->second.mod_revision : found->second.create_revision;
    }
    txn.guards.push_back(guard);
  }
  std::set<std::string> keys;
  for (std::uint64_t i = below(6); i > 0; --i) keys.insert(key());
  for (const std::string& one : keys) {
    txn.writes.push_back(below(4) == 0 ? erase(one) : put(one, std::string(below(9) == 0 ? 9000 : below(300), 'v')));
  }
  return txn;
}

START_TEST(random_transactions_against_a_model) {
  const std::uint64_t seed = 4711;
  std::mt19937_64 random(seed);
  ContractSession s;
  Model model;
  for (int i = 0; i < 600; ++i) {
    const Txn txn = random_txn(random, model);
    const bool holds = model.guards_hold(txn);
    const TxnResult result = s.commit(txn);
    ck_assert_msg((result.outcome == Outcome::kDone) == holds, "seed %lu, transaction %d: %s", seed, i,
                  result.message.c_str());
    if (holds) model.apply(txn, result.revision);
    if (i % 100 == 99) s.reopen(i % 200 == 199);
    if (i % 20 == 19)
      ck_assert_msg(same_entries(model.all(), s.read("").entries), "seed %lu, after transaction %d", seed, i);
  }
}
END_TEST

}  // namespace

Session::Session(const std::function<std::unique_ptr<Backend>(TestLoop&)>& make) : backend_(make(loop_)) {
  store_ = backend_->open(loop_.executor());
}

Session::~Session() {
  if (store_) backend_->end(std::move(store_), true);
}

TxnResult Session::commit(Txn txn) {
  std::optional<TxnResult> result;
  store_->commit(std::move(txn), [&](TxnResult r) { result = std::move(r); });
  ck_assert_msg(loop_.run_until([&] { return result.has_value(); }), "commit was never answered");
  return *result;
}

ReadResult Session::read(const std::string& prefix) {
  std::optional<ReadResult> result;
  store_->read(prefix, [&](ReadResult r) { result = std::move(r); });
  ck_assert_msg(loop_.run_until([&] { return result.has_value(); }), "read was never answered");
  return *result;
}

void Session::reopen(bool clean) {
  backend_->end(std::move(store_), clean);
  store_ = backend_->open(loop_.executor());
}

std::uint64_t Session::done(Txn txn) {
  const TxnResult result = commit(std::move(txn));
  ck_assert_msg(result.outcome == Outcome::kDone, "not done: %s", result.message.c_str());
  return result.revision;
}

Write put(std::string key, std::string value, bool owned) { return {std::move(key), std::move(value), owned}; }
Write erase(std::string key) { return {std::move(key), std::nullopt, false}; }
Guard mod_is(std::string key, std::uint64_t revision) { return {std::move(key), Guard::What::kModRevision, revision}; }
Guard create_is(std::string key, std::uint64_t revision) {
  return {std::move(key), Guard::What::kCreateRevision, revision};
}

bool same_entries(const std::vector<Entry>& a, const std::vector<Entry>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Entry& x, const Entry& y) {
    return x.key == y.key && x.value == y.value && x.create_revision == y.create_revision &&
           x.mod_revision == y.mod_revision;
  });
}

void add_contract(Suite* suite, Implementation implementation) {
  g_implementation = std::move(implementation);
  static std::string name;  // Check keeps the pointer
  name = g_implementation.name + "-contract";
  TCase* tcase = tcase_create(name.c_str());
  tcase_set_timeout(tcase, 60);
  if (g_implementation.set_up != nullptr) {
    tcase_add_unchecked_fixture(tcase, g_implementation.set_up, g_implementation.tear_down);
  }
  for (const TTest* test : {put_then_read,
                            revisions_increase,
                            reads_see_what_was_before_them,
                            guards_by_modification,
                            guards_by_creation,
                            all_or_nothing,
                            one_of_many_wins,
                            deletes,
                            bounds,
                            operations_in_one_transaction,
                            prefixes,
                            owned_keys_die_at_a_clean_end,
                            owned_keys_die_with_a_kill,
                            durable_over_a_clean_end,
                            durable_over_a_kill,
                            outstanding_calls_are_completed,
                            watch_live,
                            read_then_watch_misses_nothing,
                            watch_from_the_past,
                            watch_of_the_future,
                            cancelled_watches_are_silent,
                            callbacks_come_from_the_loop_once,
                            calls_from_callbacks,
                            healthy_and_named,
                            random_transactions_against_a_model}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
}

}  // namespace usblease::store_test
