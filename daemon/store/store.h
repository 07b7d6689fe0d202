// The store: the linearizable record of the cluster. This header is the contract; docs/store.md says it in prose, and
// tests/store/contract.cc is run against every implementation.
//
// 1. Order. Transactions are linearizable; each one that is done and changed something has a revision, greater than
//    every one before it. One that changed nothing (only guards, deletes of absent keys) has the revision at which it
//    was done. A read is linearizable: it sees every transaction that was done before the read began.
// 2. Guards. All guards of a transaction hold at one instant and all its writes happen at that instant, or nothing
//    happens.
// 3. Outcomes. kDone: it is durable. kRefused: it never happened and never will. kUnknown: it may have happened, or
//    may happen until the connection that carried it is known to be gone; the caller must read back before
//    anything follows from it. An implementation that is not sure says kUnknown, never kRefused.
// 4. Owned keys. A key put with owned = true vanishes when its owner is gone: the process for SQLite, the owner's
//    lease in the engine for etcd. It may live longer than its owner by a bounded time, and may die early: so it
//    is a hint of liveness and a guard, never by itself a proof that its former owner has stopped.
// 5. Watches. Every change at or after `from_revision`, in order, each at least once, then live ones; or kCompacted,
//    which is the last update of that watch: the caller reads everything again and watches from the revision after
//    that read. A watch may lag without bound.
// 6. Callbacks run on the main loop's thread (the Executor), never inside the call that was given them, and at most
//    once (watches: until cancelled). Calls are bounded: each ends within the store's call timeout with some outcome.
//    Transactions and reads of one caller begin in the order of their calls. All calls are made on the main loop's
//    thread.
// 7. Records. The store seals each value on its way in and unseals it on its way out (daemon/store/envelope.h), so
//    callers see plain values and every implementation finds damage the same way. A value that does not unseal
//    makes the read fail (ok = false) and the health not ok; it is never left out or handed over.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::store {

inline constexpr std::size_t kKeyMax = 512;        // bytes; at least 1, none of them NUL
inline constexpr std::size_t kValueMax = 65'536;   // bytes, before sealing
inline constexpr std::size_t kTxnOpsMax = 16'384;  // guards + writes: one decision about every device of a host

struct Entry {
  std::string key;
  std::string value;
  std::uint64_t create_revision = 0;
  std::uint64_t mod_revision = 0;
};

struct Guard {
  enum class What : std::uint8_t { kModRevision, kCreateRevision };
  std::string key;
  What what = What::kModRevision;
  std::uint64_t revision = 0;  // 0: the key does not exist
};

struct Write {
  std::string key;
  std::optional<std::string> value;  // nullopt: delete; deleting what is not there is no error
  bool owned = false;
};

struct Txn {
  std::vector<Guard> guards;
  std::vector<Write> writes;  // a key at most once
};

enum class Outcome : std::uint8_t { kDone, kRefused, kUnknown };

// Why a transaction was refused or is unknown.
enum class Cause : std::uint8_t {
  kNone,
  kGuard,     // a guard did not hold
  kNoSpace,   // the disk is full: reads go on, and writes work again when there is room
  kTooLarge,  // out of bounds: over kTxnOpsMax, kKeyMax or kValueMax, or a key that is empty, has a NUL, or comes twice
  kFailed,    // the engine failed; `message` says how
};

struct TxnResult {
  Outcome outcome = Outcome::kUnknown;
  Cause cause = Cause::kNone;
  std::uint64_t revision = 0;  // kDone: of this transaction; kRefused: the store's present one when known
  std::string message;         // not kDone: for people
};

struct ReadResult {
  bool ok = false;             // false: no answer in time, or the engine failed; nothing follows
  std::uint64_t revision = 0;  // at which all entries were read
  std::vector<Entry> entries;  // by key
  std::string message;
};

struct WatchUpdate {
  enum class What : std::uint8_t { kChange, kCompacted };
  What what = What::kChange;
  std::uint64_t revision = 0;
  std::string key;
  std::optional<std::string> value;  // nullopt: deleted
};

struct Health {
  bool ok = true;
  std::string message;  // not ok: what is wrong and what to do
};

// Where callbacks run. Real: common/main_loop.h post(). Simulation and tests bring their own.
using Executor = std::function<void(std::function<void()>)>;

using WatchId = std::uint64_t;

// What the border checks before anything else, the same for every implementation: why `txn` is out of them, or nullopt.
std::optional<std::string> out_of_bounds(const Txn& txn);

// The least key behind all keys that begin with `prefix`; nullopt: there is none (empty, or all bytes are 0xff).
std::optional<std::string> prefix_end(std::string_view prefix);

class Store {
 public:
  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  // Outstanding calls are completed (their callbacks are posted, or dropped when the process ends); no callback
  // refers to the store after this.
  virtual ~Store() = default;

  virtual void commit(Txn txn, std::function<void(TxnResult)> done) = 0;

  // All keys that begin with `prefix`, at one revision. An exact key is a prefix of itself: callers that want only it
  // ignore longer ones, so no key of ours is a prefix of another (daemon/lease/keys.h).
  virtual void read(std::string prefix, std::function<void(ReadResult)> done) = 0;

  virtual WatchId watch(std::string prefix, std::uint64_t from_revision, std::function<void(WatchUpdate)> update) = 0;
  virtual void cancel_watch(WatchId id) = 0;

  // Of the last calls; not a promise for the next one.
  [[nodiscard]] virtual Health health() const = 0;

  // "sqlite:/var/lib/usblease/usblease.db", for people.
  [[nodiscard]] virtual std::string describe() const = 0;
};

}  // namespace usblease::store
