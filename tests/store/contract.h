// The contract of daemon/store/store.h as tests, for any implementation. To add one: a Backend, and a main that makes
// a Suite, calls add_contract and runs it (test_sqlite.cc; docs/store.md).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "daemon/store/store.h"
#include "tests/store/test_loop.h"
#include "tests/store/with_check.h"

namespace usblease::store_test {

// One store that can be opened, ended and opened again.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // Opens it as a new owner; fails the test when it cannot.
  virtual std::unique_ptr<store::Store> open(store::Executor executor) = 0;

  // Ends the owner: in order, or as kill -9 would (nothing of what it does at its end may reach the store).
  virtual void end(std::unique_ptr<store::Store> store, bool clean) = 0;

  // How long an owned key may outlive its owner.
  [[nodiscard]] virtual std::uint32_t owned_linger_ms() const { return 0; }
  // Lets so much of its time pass.
  virtual void pass(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }
};

struct Implementation {
  std::string name;                                         // of the test cases
  std::function<std::unique_ptr<Backend>(TestLoop&)> make;  // an empty store
  // Around all test cases, in the process from which they are forked off.
  void (*set_up)() = nullptr;
  void (*tear_down)() = nullptr;
};

// One implementation for each program: Check's tests take no arguments, so it is remembered for them.
void add_contract(Suite* suite, Implementation implementation);

// A store with calls that wait for their answer; also for tests beyond the contract.
class Session {
 public:
  explicit Session(const std::function<std::unique_ptr<Backend>(TestLoop&)>& make);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  store::Store& store() { return *store_; }
  TestLoop& loop() { return loop_; }

  store::TxnResult commit(store::Txn txn);
  store::ReadResult read(const std::string& prefix);
  void reopen(bool clean);

  [[nodiscard]] std::uint32_t owned_linger_ms() const { return backend_->owned_linger_ms(); }
  void pass(std::chrono::milliseconds time) { backend_->pass(time); }

  // Fails the test unless it is done; returns the revision.
  std::uint64_t done(store::Txn txn);

 private:
  TestLoop loop_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<store::Store> store_;
};

// Short ways to write a transaction.
store::Write put(std::string key, std::string value, bool owned = false);
store::Write erase(std::string key);
store::Guard mod_is(std::string key, std::uint64_t revision);
store::Guard create_is(std::string key, std::uint64_t revision);

bool same_entries(const std::vector<store::Entry>& a, const std::vector<store::Entry>& b);

}  // namespace usblease::store_test
