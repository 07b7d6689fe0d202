// A usbleased that answers as a test tells it to, on a socket of its own, in a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "api.pb.h"
#include "common/fd.h"
#include "common/frame.h"

namespace usblease::hook::testing {

// One accepted connection. Every wait ends when the daemon is taken down.
class Connection {
 public:
  Connection(UniqueFd fd, int stop_fd) : fd_(std::move(fd)), stop_fd_(stop_fd) {}

  // The next frame; false: the hook hung up, or the test is over.
  bool receive(api::ClientFrame& frame);
  void send(const api::ServerFrame& frame);
  void send_raw(const std::string& bytes);
  // Until the hook hangs up.
  void wait_for_end();

 private:
  bool wait_readable();
  UniqueFd fd_;
  int stop_fd_;
  FrameReader reader_;
};

class FakeDaemon {
 public:
  using Behaviour = std::function<void(Connection&, FakeDaemon&)>;

  FakeDaemon(const std::string& socket_path, Behaviour behaviour);
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;
  ~FakeDaemon();

  [[nodiscard]] int accepted() const { return accepted_; }
  void record(const api::HookCall& call);
  [[nodiscard]] std::vector<api::HookCall> calls();

 private:
  void serve();
  UniqueFd listening_;
  UniqueFd stop_;
  Behaviour behaviour_;
  std::atomic<int> accepted_ = 0;
  std::mutex mutex_;
  std::vector<api::HookCall> calls_;
  std::thread thread_;
};

// Answers Hello well and the call with this status; records the call.
FakeDaemon::Behaviour answer(command::Code code, const std::string& message = "");

}  // namespace usblease::hook::testing
