// A real server on a real socket, on the test's own main loop, and clients that never block.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/frame.h"
#include "daemon/api/server.h"
#include "tests/unit/common/check_run.h"

namespace usblease::test {

// Runs the main loop until `done()`; Check's own limit for a test bounds it.
void iterate_until(const std::function<bool()>& done);
// Runs the main loop for as long as it has something to do at once.
void iterate_pending();

// The client's end of one connection, non-blocking.
class RawClient {
 public:
  explicit RawClient(const std::string& path);
  void send_bytes(const std::string& bytes);  // must fit into the socket's buffer
  void send(const api::ClientFrame& frame);
  void hello(std::uint32_t version = kApiVersion);
  // A request whose answer the handler chooses: ListDevices.
  void request(std::uint64_t id);

  // The next frame, for which the main loop runs; aborts the test when the server hangs up instead.
  api::ServerFrame receive();
  // Runs the main loop until the server has hung up; whole frames that came before stay readable.
  void wait_for_end();
  // hello() and its reply.
  void greet();
  // What is there now, without running the main loop.
  std::optional<api::ServerFrame> poll();
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

 private:
  void fill();
  UniqueFd fd_;
  FrameReader reader_;
  bool ended_ = false;
};

class ServerFixture {
 public:
  // Without a handler every request is answered at once, CODE_OK.
  explicit ServerFixture(api::Limits limits = {}, api::Handler handler = {}, api::AccessRules rules = {"", false});
  [[nodiscard]] std::string path() const { return directory_.file("s"); }
  api::Server& server() { return *server_; }
  void destroy_server() { server_.reset(); }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<api::Server> server_;
};

// Keeps every request for later.
struct Keeper {
  std::vector<api::Responder> responders;
  std::vector<std::uint64_t> ids;
  api::Handler handler();
};

api::ServerFrame text_frame(const std::string& text);

// Runs `body` in a child process, which ends with what it returns; the main loop of this process serves meanwhile.
// Returns the child's exit status.
int in_child(const std::function<int()>& body);

}  // namespace usblease::test
