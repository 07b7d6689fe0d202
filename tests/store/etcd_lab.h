// Real etcd members on loopback for tests, started and ended by the test; a relay in front of a member that can be cut
// and held; and a Backend on them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/fd.h"
#include "daemon/store/etcd_store.h"
#include "tests/store/contract.h"
#include "tests/store/sqlite_env.h"

namespace usblease::store_test {

std::uint16_t free_port();

// A CA of its own, one certificate for 127.0.0.1 that servers and clients share; ed25519.
class Certificates {
 public:
  explicit Certificates(const std::string& name);
  [[nodiscard]] std::string ca() const { return dir_.file("ca.pem"); }
  [[nodiscard]] std::string cert() const { return dir_.file("host.pem"); }
  [[nodiscard]] std::string key() const { return dir_.file("host.key"); }

 private:
  TempDir dir_;
};

struct EtcdLabOptions {
  int members = 1;
  const Certificates* certificates = nullptr;  // nullptr: plaintext
  std::vector<std::string> more_arguments;
};

// Ends its members when it dies; they die with this process, too.
class EtcdLab {
 public:
  explicit EtcdLab(EtcdLabOptions options);
  EtcdLab(const EtcdLab&) = delete;
  EtcdLab& operator=(const EtcdLab&) = delete;
  ~EtcdLab();

  void start(int member);
  void kill(int member);    // SIGKILL, and waits for its end
  void freeze(int member);  // SIGSTOP
  void thaw(int member);
  void start_new_learner(const std::string& initial_cluster);  // as the next member; it was added before

  [[nodiscard]] int size() const { return static_cast<int>(members_.size()); }
  [[nodiscard]] std::string address(int member) const;
  [[nodiscard]] std::string peer_url(int member) const;
  [[nodiscard]] std::string name(int member) const { return "m" + std::to_string(member); }
  [[nodiscard]] std::string log(int member) const { return dir_.file("log" + std::to_string(member)); }
  void add_member();  // ports and a name for one more

  // All members as endpoints, a prefix of its own.
  [[nodiscard]] store::EtcdOptions options() const;

 private:
  struct Member {
    std::uint16_t client_port = 0;
    std::uint16_t peer_port = 0;
    pid_t pid = -1;
  };
  void run(int member, const std::string& state, const std::string& cluster);
  [[nodiscard]] std::string initial_cluster() const;
  [[nodiscard]] std::string url(std::uint16_t port) const;

  EtcdLabOptions options_;
  TempDir dir_{true};
  std::vector<Member> members_;
};

// A TCP relay to 127.0.0.1:PORT, on a thread of its own.
class TcpRelay {
 public:
  explicit TcpRelay(std::uint16_t to_port);
  TcpRelay(const TcpRelay&) = delete;
  TcpRelay& operator=(const TcpRelay&) = delete;
  ~TcpRelay();

  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // When these return, nothing more comes through.
  void cut();           // ends all connections; new ones are closed at once
  void hold();          // keeps the connections and passes nothing on
  void pass();          // as at first
  void hold_answers();  // what is asked comes through, what is answered does not

 private:
  enum class Mode : std::uint8_t { kPass, kCut, kHold, kHoldAnswers, kEnd };
  struct Pair {
    UniqueFd client;
    UniqueFd server;
  };
  void set(Mode mode);
  void run();
  void wait_for_traffic(Mode mode);
  void accept_one();

  std::uint16_t to_port_;
  std::uint16_t port_ = 0;
  UniqueFd listener_;
  UniqueFd wake_;
  std::mutex mutex_;  // held while bytes are moved
  Mode mode_ = Mode::kPass;
  std::vector<Pair> pairs_;
  std::thread thread_;
};

// Each open has relays of its own, so that a kill can be what it is: nothing of the owner comes through any more.
class EtcdBackend final : public Backend {
 public:
  explicit EtcdBackend(const EtcdLab& lab);
  std::unique_ptr<store::Store> open(store::Executor executor) override;
  void end(std::unique_ptr<store::Store> store, bool clean) override;
  [[nodiscard]] std::uint32_t owned_linger_ms() const override { return 8'000; }

  store::EtcdOptions& options() { return options_; }
  TcpRelay& relay(std::size_t member) { return *relays_[member]; }

 private:
  store::EtcdOptions options_;
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<TcpRelay>> relays_;
};

}  // namespace usblease::store_test
