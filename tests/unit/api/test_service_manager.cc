// What systemd gives (sockets) and what it is told (readiness, watchdog).
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>

#include "common/boottime.h"
#include "common/unix_socket.h"
#include "daemon/api/activation.h"
#include "daemon/api/service_manager.h"
#include "tests/unit/api/fixture.h"

using namespace usblease;
using namespace usblease::test;

namespace {

// As systemd does it: descriptors from 3 on. For a child only, because these numbers may be in use here.
void pass(const std::vector<int>& fds) {
  std::vector<int> high;
  high.reserve(fds.size());
  for (const int fd : fds) high.push_back(fcntl(fd, F_DUPFD, 100));
  int next = 3;
  for (const int fd : high) dup2(fd, next++);
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  setenv("LISTEN_FDS", std::to_string(fds.size()).c_str(), 1);
}

// 0: request_socket refused with that code and these words; another number tells what went wrong.
int refusal(const std::string& path, ErrorCode code, const char* words) {
  const auto socket = api::request_socket(path);
  if (socket) return 1;
  if (socket.error().code != code) return 2;
  return socket.error().message.find(words) == std::string::npos ? 3 : 0;
}

START_TEST(without_systemd_we_listen_ourselves) {
  const TemporaryDirectory directory;
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_PID");
  const auto socket = api::request_socket(directory.file("s"));
  ck_assert_ok(socket);
  ck_assert_ok(connect_unix(directory.file("s"), 1'000, SOCK_STREAM));
  ck_assert_fails(api::request_socket(directory.file("s")), ErrorCode::kRefused, "another process already listens");
}
END_TEST

START_TEST(systemds_socket_is_taken) {
  const TemporaryDirectory directory;
  const auto listening = listen_unix(directory.file("s"), 0666, SOCK_STREAM);
  ck_assert_ok(listening);
  ck_assert_int_eq(fcntl(listening->get(), F_SETFL, 0), 0);  // systemd's may block
  const auto client = connect_unix(directory.file("s"), 1'000, SOCK_STREAM);
  ck_assert_ok(client);
  const auto body = [&] {
    pass({listening->get()});
    auto socket = api::request_socket(directory.file("s"));
    if (!socket || socket->get() != 3) return 1;
    if ((fcntl(3, F_GETFD) & FD_CLOEXEC) == 0) return 2;
    if (getenv("LISTEN_FDS") != nullptr) return 3;  // relays must not see it
    const api::Server server(std::move(*socket), {}, {}, {});
    iterate_until([&] { return server.connections() == 1; });
    return (fcntl(3, F_GETFL) & O_NONBLOCK) != 0 ? 0 : 4;
  };
  ck_assert_int_eq(in_child(body), 0);
}
END_TEST

START_TEST(socket_outlives_a_daemon_that_starts_anew) {
  const TemporaryDirectory directory;
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_PID");
  const auto body = [&] {
    auto socket = api::request_socket(directory.file("s"));
    if (!socket) return 1;
    api::Server server(std::move(*socket), {}, {}, {});
    if (!api::hand_over_socket(server.stop_accepting())) return 2;
    if ((fcntl(3, F_GETFD) & FD_CLOEXEC) != 0) return 3;  // or execv would close it
    // Who connects meanwhile waits for the next one.
    const auto client = connect_unix(directory.file("s"), 1'000, SOCK_STREAM);
    if (!client || server.connections() != 0) return 4;
    auto again = api::request_socket(directory.file("s"));
    if (!again || again->get() != 3) return 5;
    const api::Server next(std::move(*again), {}, {}, {});
    iterate_until([&] { return next.connections() == 1; });
    return 0;
  };
  ck_assert_int_eq(in_child(body), 0);
}
END_TEST

START_TEST(anything_else_from_systemd_is_refused) {
  const TemporaryDirectory directory;
  const auto stream = listen_unix(directory.file("a"), 0666, SOCK_STREAM);
  const auto packets = listen_unix(directory.file("b"), 0666, SOCK_SEQPACKET);
  ck_assert_ok(stream);
  ck_assert_ok(packets);
  const std::string path = directory.file("s");
  ck_assert_int_eq(in_child([&] {
                     pass({stream->get(), packets->get()});
                     return refusal(path, ErrorCode::kBadInput, "systemd passed 2 sockets; usbleased.socket must");
                   }),
                   0);
  const UniqueFd unbound(socket(AF_UNIX, SOCK_STREAM, 0));
  const UniqueFd network(socket(AF_INET, SOCK_STREAM, 0));
  ck_assert_int_eq(listen(network.get(), 1), 0);
  const UniqueFd file(open("/dev/null", O_RDONLY));
  for (const int fd : {packets->get(), unbound.get(), network.get(), file.get()}) {
    ck_assert_int_eq(in_child([&] {
                       pass({fd});
                       return refusal(path, ErrorCode::kBadInput,
                                      "not a listening Unix stream socket; usbleased.socket");
                     }),
                     0);
  }
  ck_assert_int_eq(in_child([&] {
                     setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
                     setenv("LISTEN_FDS", "many", 1);
                     return refusal(path, ErrorCode::kInternal, "sd_listen_fds");
                   }),
                   0);
  ck_assert(!std::filesystem::exists(path));
}
END_TEST

// The service manager's end.
class Manager {
 public:
  explicit Manager(const TemporaryDirectory& directory) {
    fd_.reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = directory.file("notify");
    std::memcpy(address.sun_path, path.data(), path.size());
    ck_assert_int_eq(bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
  }
  std::string next() {
    const auto readable = watch_fd(fd_.get(), G_IO_IN, [](GIOCondition /*ready*/) {});
    std::array<char, 1024> text{};
    for (;;) {
      const ssize_t count = recv(fd_.get(), text.data(), text.size(), 0);
      if (count >= 0) return {text.data(), static_cast<std::size_t>(count)};
      g_main_context_iteration(nullptr, TRUE);
    }
  }

 private:
  UniqueFd fd_;
};

START_TEST(readiness_and_stop) {
  const TemporaryDirectory directory;
  Manager manager(directory);
  api::notify_ready("coordinator of 1 host\nREADY=0");
  ck_assert_text_eq(manager.next(), "READY=1\nSTATUS=coordinator of 1 host\\x0AREADY=0");
  api::notify_status("5 leases");
  ck_assert_text_eq(manager.next(), "STATUS=5 leases");
  api::notify_stopping();
  ck_assert_text_eq(manager.next(), "STOPPING=1\nSTATUS=stopping; relays and their leases live on");
  unsetenv("NOTIFY_SOCKET");
  api::notify_ready("nobody listens");
}
END_TEST

START_TEST(the_watchdog_pings_at_half_of_its_interval) {
  const TemporaryDirectory directory;
  Manager manager(directory);
  setenv("WATCHDOG_USEC", "40000", 1);
  setenv("WATCHDOG_PID", std::to_string(getpid()).c_str(), 1);
  const api::Watchdog watchdog;
  ck_assert(watchdog.enabled());
  ck_assert_text_eq(manager.next(), "WATCHDOG=1");
  const std::uint64_t begin_ns = boottime_now_ns();
  for (int i = 0; i < 3; ++i) ck_assert_text_eq(manager.next(), "WATCHDOG=1");
  ck_assert_uint_ge(boottime_now_ns() - begin_ns, 3 * 20'000'000ULL - 5'000'000);
}
END_TEST

START_TEST(no_watchdog_unless_systemd_wants_one) {
  unsetenv("WATCHDOG_USEC");
  ck_assert(!api::Watchdog().enabled());
  setenv("WATCHDOG_USEC", "40000", 1);
  setenv("WATCHDOG_PID", "1", 1);  // meant for another process
  ck_assert(!api::Watchdog().enabled());
  setenv("WATCHDOG_USEC", "soon", 1);
  unsetenv("WATCHDOG_PID");
  ck_assert(!api::Watchdog().enabled());
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("api");
  TCase* const all = tcase_create("service_manager");
  tcase_set_timeout(all, 20);
  tcase_add_test(all, without_systemd_we_listen_ourselves);
  tcase_add_test(all, systemds_socket_is_taken);
  tcase_add_test(all, socket_outlives_a_daemon_that_starts_anew);
  tcase_add_test(all, anything_else_from_systemd_is_refused);
  tcase_add_test(all, readiness_and_stop);
  tcase_add_test(all, the_watchdog_pings_at_half_of_its_interval);
  tcase_add_test(all, no_watchdog_unless_systemd_wants_one);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
