#include "tests/cluster/daemon_client.h"

#include "common/boottime.h"

namespace usblease::cluster_test {

Result<api::ServerFrame> DaemonClient::ask(api::ClientFrame request, std::uint32_t timeout_ms) {
  const std::uint64_t deadline_ns = boottime_now_ns() + timeout_ms * std::uint64_t{1'000'000};
  if (!client_) {
    if (auto connected = connect(deadline_ns); !connected) return tl::unexpected(connected.error());
  }
  request.set_id(next_id_++);
  auto answer = exchange(request, deadline_ns);
  if (!answer) disconnect();
  return answer;
}

Result<void> DaemonClient::connect(std::uint64_t deadline_ns) {
  auto client = Client::connect(socket_path_, deadline_ns);
  if (!client) return tl::unexpected(client.error());
  client_.emplace(std::move(*client));
  api::ClientFrame hello;
  hello.set_id(next_id_++);
  hello.mutable_hello()->set_version(kApiVersion);
  hello.mutable_hello()->set_program("lease-holder");
  const auto answer = exchange(hello, deadline_ns);
  if (!answer) disconnect();
  if (!answer) return tl::unexpected(answer.error());
  return {};
}

Result<api::ServerFrame> DaemonClient::exchange(const api::ClientFrame& request, std::uint64_t deadline_ns) {
  if (auto sent = client_->send(request.SerializeAsString(), deadline_ns); !sent) return tl::unexpected(sent.error());
  for (;;) {
    const auto payload = client_->receive(deadline_ns);
    if (!payload) return tl::unexpected(payload.error());
    api::ServerFrame frame;
    if (!frame.ParseFromString(*payload)) return fail(ErrorCode::kInternal, "the daemon's answer does not parse");
    if (frame.id() != request.id() && frame.id() != 0) continue;  // the end of a request that was given up
    if (!frame.more()) return frame;
  }
}

}  // namespace usblease::cluster_test
