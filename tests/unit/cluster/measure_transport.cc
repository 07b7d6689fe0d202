// Round trip of a frame between two hosts on loopback, beside a raw ping-pong of the same bytes on TCP in the same run,
// interleaved in blocks; and the time from dialing to up. The two hosts are two processes. Prints one JSON object.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>

#include "tests/unit/cluster/transport_kit.h"

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::test;

namespace {

constexpr int kBlocks = 50;
constexpr int kTripsPerBlock = 400;
constexpr int kConnects = 200;

struct Samples {
  std::vector<std::uint64_t> ns;
  [[nodiscard]] double us(double quantile) {
    std::sort(ns.begin(), ns.end());
    return static_cast<double>(ns.at(static_cast<std::size_t>(quantile * static_cast<double>(ns.size() - 1)))) / 1000;
  }
};

// Echoes raw bytes on one connection until its end.
void echo(const Listening& listening) {
  const UniqueFd fd(accept(listening.fd.get(), nullptr, nullptr));
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count <= 0 || write(fd.get(), buffer.data(), static_cast<std::size_t>(count)) != count) return;
  }
}

template <typename Work>
pid_t in_child(const Work& work) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  work();
  _exit(0);
}

void measure(std::uint16_t tls_port, std::uint16_t raw_port, const Identity& identity) {
  const std::string payload(100, 'x');
  const UniqueFd raw_fd = connect_to(raw_port);
  const int on = 1;
  setsockopt(raw_fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  Node a(identity);
  const Peer b{"b", {"127.0.0.1:" + std::to_string(tls_port)}};
  Samples raw;
  Samples tls;
  Samples connects;
  for (int i = 0; i < kConnects; ++i) {
    a.transport->set_peers({});
    const std::uint64_t begin_ns = boottime_now_ns();
    a.transport->set_peers({b});
    ck_must(wait_until([&] { return a.transport->connected("b"); }));
    connects.ns.push_back(boottime_now_ns() - begin_ns);
  }
  std::array<char, 4096> buffer{};
  for (int block = 0; block < kBlocks; ++block) {
    for (int i = 0; i < kTripsPerBlock; ++i) {
      const std::uint64_t begin_ns = boottime_now_ns();
      ck_must(write(raw_fd.get(), payload.data(), payload.size()) == static_cast<ssize_t>(payload.size()));
      ck_must(read(raw_fd.get(), buffer.data(), buffer.size()) == static_cast<ssize_t>(payload.size()));
      raw.ns.push_back(boottime_now_ns() - begin_ns);
    }
    for (int i = 0; i < kTripsPerBlock; ++i) {
      a.answers.clear();
      const std::uint64_t begin_ns = boottime_now_ns();
      ck_must(a.transport->ask("b", payload));
      while (a.answers.empty()) g_main_context_iteration(nullptr, TRUE);
      tls.ns.push_back(boottime_now_ns() - begin_ns);
    }
  }
  std::printf(
      "{\"raw_tcp_p50_us\": %.1f, \"raw_tcp_p99_us\": %.1f, \"transport_p50_us\": %.1f, \"transport_p99_us\": %.1f, "
      "\"dial_to_up_p50_us\": %.1f, \"dial_to_up_p99_us\": %.1f}\n",
      raw.us(0.5), raw.us(0.99), tls.us(0.5), tls.us(0.99), connects.us(0.5), connects.us(0.99));
}

}  // namespace

int main() {
  log::setup("measure-transport", log::Level::kError);
  const Kit kit;
  const Identity a = kit.host("a");
  const Identity b = kit.host("b");
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return EXIT_FAILURE;
  const pid_t server = in_child([&] {
    Node node(b);
    const std::uint16_t port = node.transport->port();
    if (write(ends[1], &port, sizeof(port)) != sizeof(port)) _exit(EXIT_FAILURE);
    for (;;) g_main_context_iteration(nullptr, TRUE);
  });
  std::uint16_t port = 0;
  if (read(ends[0], &port, sizeof(port)) != sizeof(port)) return EXIT_FAILURE;
  const Listening listening = listen_anywhere();
  const pid_t echoing = in_child([&] { echo(listening); });
  const pid_t measuring = in_child([&] {
    measure(port, listening.port, a);
    std::fflush(stdout);
  });
  int status = 0;
  waitpid(measuring, &status, 0);
  for (const pid_t pid : {server, echoing}) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}
