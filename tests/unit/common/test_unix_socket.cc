// Who may take a socket's path, and who is at the other end.
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "common/boottime.h"
#include "common/client.h"
#include "common/unix_socket.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

constexpr std::uint32_t kTimeoutMs = 5'000;

std::uint64_t in_ms(std::uint64_t ms) { return boottime_now_ns() + ms * 1'000'000; }

START_TEST(listen_connect_credentials) {
  const test::TemporaryDirectory directory;
  umask(077);
  const auto listening = listen_unix(directory.file("s"), 0666, SOCK_STREAM);
  ck_assert_ok(listening);
  struct stat info {};
  ck_assert_int_eq(stat(directory.file("s").c_str(), &info), 0);
  ck_assert_int_eq(info.st_mode & 0777, 0666);
  const auto client = connect_unix(directory.file("s"), kTimeoutMs, SOCK_STREAM);
  ck_assert_ok(client);
  const UniqueFd server(accept(listening->get(), nullptr, nullptr));
  ck_assert(static_cast<bool>(server));
  const auto peer = peer_credentials(server.get());
  ck_assert_ok(peer);
  ck_assert_int_eq(peer->pid, getpid());
  ck_assert_uint_eq(peer->uid, getuid());
  ck_assert_uint_eq(peer->gid, getgid());
}
END_TEST

START_TEST(a_stale_socket_is_replaced) {
  const test::TemporaryDirectory directory;
  {
    const auto dead = listen_unix(directory.file("s"), 0600, SOCK_STREAM);
    ck_assert_ok(dead);
  }
  ck_assert(std::filesystem::exists(directory.file("s")));
  ck_assert_fails(connect_unix(directory.file("s"), kTimeoutMs, SOCK_STREAM), ErrorCode::kUnavailable,
                  "Connection refused");
  const auto again = listen_unix(directory.file("s"), 0600, SOCK_STREAM);
  ck_assert_ok(again);
  ck_assert_ok(connect_unix(directory.file("s"), kTimeoutMs, SOCK_STREAM));
}
END_TEST

START_TEST(a_live_socket_is_refused) {
  const test::TemporaryDirectory directory;
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    const std::string path = directory.file(std::to_string(type));
    const auto first = listen_unix(path, 0600, type);
    ck_assert_ok(first);
    ck_assert_fails(listen_unix(path, 0600, type), ErrorCode::kRefused, "another process already listens on " + path);
    ck_assert_ok(connect_unix(path, kTimeoutMs, type));  // the first one still serves
  }
}
END_TEST

START_TEST(anything_else_is_refused) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("file", "precious");
  ck_assert_fails(listen_unix(file, 0600, SOCK_STREAM), ErrorCode::kRefused, "exists and is not a socket");
  ck_assert_uint_eq(std::filesystem::file_size(file), 8);
  std::filesystem::create_symlink("/nowhere", directory.file("link"));
  ck_assert_fails(listen_unix(directory.file("link"), 0600, SOCK_STREAM), ErrorCode::kRefused, "is not a socket");
  std::filesystem::create_directory(directory.file("directory"));
  ck_assert_fails(listen_unix(directory.file("directory"), 0600, SOCK_STREAM), ErrorCode::kRefused, "is not a socket");
  ck_assert_fails(listen_unix(directory.file("absent/s"), 0600, SOCK_STREAM), ErrorCode::kInternal, "cannot bind");
  ck_assert_fails(listen_unix(directory.file(std::string(108, 'x')), 0600, SOCK_STREAM), ErrorCode::kBadInput,
                  "at most 107 bytes");
  ck_assert_fails(connect_unix("", kTimeoutMs, SOCK_STREAM), ErrorCode::kBadInput, "");
}
END_TEST

START_TEST(connecting_is_bounded) {
  const test::TemporaryDirectory directory;
  const auto listening = listen_unix(directory.file("s"), 0600, SOCK_STREAM);
  ck_assert_ok(listening);
  ck_assert_int_eq(listen(listening->get(), 0), 0);  // a backlog of one that nobody takes
  const auto first = connect_unix(directory.file("s"), kTimeoutMs, SOCK_STREAM);
  ck_assert_ok(first);
  ck_assert_fails(connect_unix(directory.file("s"), 30, SOCK_STREAM), ErrorCode::kTimedOut, "nobody accepts");
  ck_assert_fails(Client::connect(directory.file("absent"), in_ms(100)), ErrorCode::kUnavailable, "is it running?");
}
END_TEST

START_TEST(a_client_waits_no_longer_than_its_deadline) {
  const test::TemporaryDirectory directory;
  const auto listening = listen_unix(directory.file("s"), 0600, SOCK_STREAM);
  ck_assert_ok(listening);
  auto client = Client::connect(directory.file("s"), in_ms(kTimeoutMs));
  ck_assert_ok(client);
  ck_assert_fails(client->receive(in_ms(20)), ErrorCode::kTimedOut, "did not answer in time");
  // Nobody reads: the socket's buffer fills up.
  const std::string large(kFramePayloadMax, 'x');
  ck_assert_fails(client->send(large, in_ms(20)), ErrorCode::kTimedOut, "did not answer in time");
  ck_assert_fails(client->send(large + "x", in_ms(20)), ErrorCode::kBadInput, "larger than 1048576 bytes");
  UniqueFd server(accept(listening->get(), nullptr, nullptr));
  server.reset();
  ck_assert_fails(client->receive(in_ms(kTimeoutMs)), ErrorCode::kUnavailable, "closed the connection");
  ck_assert_fails(client->send("x", in_ms(kTimeoutMs)), ErrorCode::kUnavailable, "closed the connection");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("unix_socket");
  TCase* const all = tcase_create("unix_socket");
  tcase_add_test(all, listen_connect_credentials);
  tcase_add_test(all, a_stale_socket_is_replaced);
  tcase_add_test(all, a_live_socket_is_refused);
  tcase_add_test(all, anything_else_is_refused);
  tcase_add_test(all, connecting_is_bounded);
  tcase_add_test(all, a_client_waits_no_longer_than_its_deadline);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
