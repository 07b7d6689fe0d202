// The floor of what a client asks its daemon.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "common/fd.h"

namespace usblease::bench {

// A round trip of 128 bytes each way over a raw Unix socket to a thread that only answers.
class UnixEcho {
 public:
  UnixEcho() {
    int ends[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return;
    ours_.reset(ends[0]);
    thread_ = std::thread([fd = UniqueFd(ends[1])] {
      std::array<char, 128> buffer{};
      for (ssize_t got = 0; (got = read(fd.get(), buffer.data(), buffer.size())) > 0;) {
        if (write(fd.get(), buffer.data(), static_cast<std::size_t>(got)) != got) return;
      }
    });
  }
  ~UnixEcho() {
    ours_.reset();
    if (thread_.joinable()) thread_.join();
  }
  UnixEcho(const UnixEcho&) = delete;
  UnixEcho& operator=(const UnixEcho&) = delete;
  bool round_trip() {
    std::array<char, 128> buffer{};
    return write(ours_.get(), buffer.data(), buffer.size()) == static_cast<ssize_t>(buffer.size()) &&
           read(ours_.get(), buffer.data(), buffer.size()) > 0;
  }

 private:
  UniqueFd ours_;
  std::thread thread_;
};

}  // namespace usblease::bench
