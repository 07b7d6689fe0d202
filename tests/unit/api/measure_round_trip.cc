// Round trip of a request through the server, beside a raw ping-pong of the same bytes on a Unix socket in the same
// run. Interleaved in blocks, so that both see the same machine. Prints one JSON object.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "common/boottime.h"
#include "common/client.h"
#include "common/main_loop.h"
#include "common/unix_socket.h"
#include "daemon/api/server.h"

using namespace usblease;

namespace {

constexpr int kBlocks = 50;
constexpr int kTripsPerBlock = 400;
constexpr std::uint64_t kPatienceNs = 60'000'000'000;

struct Samples {
  std::vector<std::uint64_t> ns;
  [[nodiscard]] double us(double quantile) {
    std::sort(ns.begin(), ns.end());
    return static_cast<double>(ns.at(static_cast<std::size_t>(quantile * static_cast<double>(ns.size() - 1)))) / 1000;
  }
};

void die(const char* what) {
  std::fprintf(stderr, "measure_round_trip: %s failed\n", what);
  std::exit(EXIT_FAILURE);
}

// Echoes single messages until the end of the stream: what any server on a Unix socket must at least do.
void echo(int fd) {
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t count = read(fd, buffer.data(), buffer.size());
    if (count <= 0) return;
    if (write(fd, buffer.data(), static_cast<std::size_t>(count)) != count) return;
  }
}

void raw_trips(int fd, const std::string& bytes, Samples& out) {
  std::array<char, 4096> buffer{};
  for (int i = 0; i < kTripsPerBlock; ++i) {
    const std::uint64_t begin_ns = boottime_now_ns();
    if (write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) die("write");
    if (read(fd, buffer.data(), buffer.size()) != static_cast<ssize_t>(bytes.size())) die("read");
    out.ns.push_back(boottime_now_ns() - begin_ns);
  }
}

void server_trips(Client& client, const std::string& payload, std::uint64_t deadline_ns, Samples& out) {
  for (int i = 0; i < kTripsPerBlock; ++i) {
    const std::uint64_t begin_ns = boottime_now_ns();
    if (!client.send(payload, deadline_ns)) die("send");
    const auto answer = client.receive(deadline_ns);
    api::ServerFrame frame;
    if (!answer || !frame.ParseFromString(*answer)) die("receive");
    out.ns.push_back(boottime_now_ns() - begin_ns);
  }
}

void measure(const std::string& path) {
  const std::uint64_t deadline_ns = boottime_now_ns() + kPatienceNs;
  auto client = Client::connect(path, deadline_ns);
  if (!client) die("connect");
  api::ClientFrame frame;
  frame.set_id(1);
  frame.mutable_hello()->set_version(kApiVersion);
  if (!client->send(frame.SerializeAsString(), deadline_ns) || !client->receive(deadline_ns)) die("Hello");
  frame.set_id(2);
  frame.mutable_device_info()->set_device("dongle");
  const std::string payload = frame.SerializeAsString();

  std::array<int, 2> pair{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) die("socketpair");
  std::thread echoing([&] { echo(pair[1]); });
  const UniqueFd echoed(pair[1]);
  UniqueFd raw_fd(pair[0]);
  Samples raw;
  Samples server;
  for (int block = 0; block < kBlocks; ++block) {
    raw_trips(raw_fd.get(), encode_frame(payload), raw);
    server_trips(*client, payload, deadline_ns, server);
  }
  raw_fd.reset();
  echoing.join();

  Samples connects;
  frame.set_id(1);
  frame.mutable_hello()->set_version(kApiVersion);
  for (int i = 0; i < 500; ++i) {
    const std::uint64_t begin_ns = boottime_now_ns();
    auto fresh = Client::connect(path, deadline_ns);
    if (!fresh || !fresh->send(frame.SerializeAsString(), deadline_ns) || !fresh->receive(deadline_ns)) die("connect");
    connects.ns.push_back(boottime_now_ns() - begin_ns);
  }
  std::printf(
      "{\"raw_p50_us\": %.1f, \"raw_p99_us\": %.1f, \"server_p50_us\": %.1f, \"server_p99_us\": %.1f, "
      "\"connect_and_hello_p50_us\": %.1f, \"connect_and_hello_p99_us\": %.1f}\n",
      raw.us(0.5), raw.us(0.99), server.us(0.5), server.us(0.99), connects.us(0.5), connects.us(0.99));
}

}  // namespace

int main() {
  const std::string path = "/tmp/usblease-measure-" + std::to_string(getpid());
  auto listening = listen_unix(path, 0600, SOCK_STREAM);
  if (!listening) die("listen_unix");
  const api::Server server(std::move(*listening), {}, {},
                           [](const api::Caller& /*caller*/, const api::ClientFrame& frame, const api::Responder& r) {
                             api::ServerFrame answer;
                             answer.mutable_device_info()->mutable_device()->set_state(frame.device_info().device());
                             r.finish(std::move(answer));
                           });
  bool finished = false;
  std::thread measuring([&] {
    measure(path);
    post([&] { finished = true; });
  });
  while (!finished) g_main_context_iteration(nullptr, TRUE);
  measuring.join();
  unlink(path.c_str());
  return EXIT_SUCCESS;
}
