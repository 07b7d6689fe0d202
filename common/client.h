// The client's side of the request protocol: blocking, with a deadline of its own. For the hook and the command line.
// Knows frames, not messages: the payloads are serialized api::ClientFrame and api::ServerFrame.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"
#include "common/fd.h"
#include "common/frame.h"

namespace usblease {

class Client {
 public:
  // kUnavailable when nobody listens at `socket_path`.
  static Result<Client> connect(const std::string& socket_path, std::uint64_t deadline_ns);

  // Whole frame or error; kTimedOut after deadline_ns (CLOCK_BOOTTIME), kUnavailable when the daemon hung up. When it
  // said something before it did, send() succeeds and receive() returns that.
  Result<void> send(const std::string& payload, std::uint64_t deadline_ns);
  Result<std::string> receive(std::uint64_t deadline_ns);

  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  void take_what_is_there();
  explicit Client(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
  FrameReader reader_;
};

}  // namespace usblease
