#include "tests/unit/api/fixture.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "common/unix_socket.h"

namespace usblease::test {
namespace {

constexpr std::uint32_t kConnectTimeoutMs = 5'000;

void finish_at_once(const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/, const api::Responder& responder) {
  responder.finish({});
}

}  // namespace

void iterate_until(const std::function<bool()>& done) {
  while (!done()) g_main_context_iteration(nullptr, TRUE);
}

void iterate_pending() {
  while (g_main_context_iteration(nullptr, FALSE) != FALSE) {
  }
}

RawClient::RawClient(const std::string& path) {
  auto fd = connect_unix(path, kConnectTimeoutMs, SOCK_STREAM);
  ck_assert_ok(fd);
  fd_ = std::move(*fd);
}

void RawClient::send_bytes(const std::string& bytes) {
  ck_assert_int_eq(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

void RawClient::send(const api::ClientFrame& frame) { send_bytes(encode_frame(frame.SerializeAsString())); }

void RawClient::hello(std::uint32_t version) {
  api::ClientFrame frame;
  frame.set_id(1);
  frame.mutable_hello()->set_version(version);
  frame.mutable_hello()->set_program("test");
  send(frame);
}

void RawClient::request(std::uint64_t id) {
  api::ClientFrame frame;
  frame.set_id(id);
  frame.mutable_list_devices();
  send(frame);
}

void RawClient::fill() {
  std::array<char, 65'536> chunk{};
  const ssize_t count = read(fd_.get(), chunk.data(), chunk.size());
  if (count > 0) {
    reader_.push({chunk.data(), static_cast<std::size_t>(count)});
  } else if (count == 0 || errno == ECONNRESET) {
    ended_ = true;
  } else {
    ck_assert_int_eq(errno, EAGAIN);
  }
}

std::optional<api::ServerFrame> RawClient::poll() {
  auto payload = reader_.next();
  ck_assert_ok(payload);
  if (!payload->has_value()) {
    fill();
    payload = reader_.next();
    ck_assert_ok(payload);
    if (!payload->has_value()) return std::nullopt;
  }
  api::ServerFrame frame;
  ck_assert(frame.ParseFromString(**payload));
  return frame;
}

api::ServerFrame RawClient::receive() {
  const auto readable = watch_fd(fd_.get(), G_IO_IN, [](GIOCondition /*ready*/) {});
  for (;;) {
    if (auto frame = poll()) return *frame;
    ck_assert_msg(!ended_, "the server hung up");
    g_main_context_iteration(nullptr, TRUE);
  }
}

void RawClient::wait_for_end() {
  const auto readable = watch_fd(fd_.get(), G_IO_IN, [](GIOCondition /*ready*/) {});
  for (;;) {
    fill();
    if (ended_) return;
    g_main_context_iteration(nullptr, TRUE);
  }
}

void RawClient::greet() {
  hello();
  const auto reply = receive();
  ck_assert_int_eq(reply.status().code(), command::CODE_OK);
  ck_assert(reply.has_hello());
}

ServerFixture::ServerFixture(api::Limits limits, api::Handler handler, api::AccessRules rules) {
  auto listening = listen_unix(path(), 0666, SOCK_STREAM);
  ck_assert_ok(listening);
  api::HelloReply hello;
  hello.set_host_id("here");
  if (!handler) handler = finish_at_once;
  server_ = std::make_unique<api::Server>(std::move(*listening), std::move(rules), hello, std::move(handler), limits);
}

api::Handler Keeper::handler() {
  return [this](const api::Caller& /*caller*/, const api::ClientFrame& frame, api::Responder responder) {
    ids.push_back(frame.id());
    responders.push_back(std::move(responder));
  };
}

api::ServerFrame text_frame(const std::string& text) {
  api::ServerFrame frame;
  frame.mutable_status()->set_code(command::CODE_OK);
  frame.mutable_status()->set_message(text);
  return frame;
}

int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child < 0) ck_abort_msg("cannot fork");
  if (child == 0) _exit(body());
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
  ck_assert(static_cast<bool>(process));
  bool ended = false;
  const auto watch = watch_fd(process.get(), G_IO_IN, [&](GIOCondition /*ready*/) { ended = true; });
  iterate_until([&] { return ended; });
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_msg(WIFEXITED(status), "the child was killed");
  return WEXITSTATUS(status);
}

}  // namespace usblease::test
