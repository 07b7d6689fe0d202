// The request protocol as the tests' holders speak it: connects when needed, one request at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "api.pb.h"
#include "common/client.h"

namespace usblease::cluster_test {

class DaemonClient {
 public:
  explicit DaemonClient(std::string socket_path) : socket_path_(std::move(socket_path)) {}

  // The last frame of the answer, whatever its status. An error: nobody answered within `timeout_ms`, or the
  // connection broke; then nobody knows whether the request was done, and the next call connects anew.
  Result<api::ServerFrame> ask(api::ClientFrame request, std::uint32_t timeout_ms);

  void disconnect() { client_.reset(); }

 private:
  Result<void> connect(std::uint64_t deadline_ns);
  Result<api::ServerFrame> exchange(const api::ClientFrame& request, std::uint64_t deadline_ns);

  std::string socket_path_;
  std::optional<Client> client_;
  std::uint64_t next_id_ = 1;
};

}  // namespace usblease::cluster_test
