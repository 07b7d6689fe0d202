#include "tests/unit/hook/fake_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "common/unix_socket.h"
#include "tests/lib/check_suite.h"

namespace usblease::hook::testing {

bool Connection::wait_readable() {
  std::array<pollfd, 2> ready = {pollfd{fd_.get(), POLLIN, 0}, pollfd{stop_fd_, POLLIN, 0}};
  return poll(ready.data(), ready.size(), 20'000) > 0 && ready[1].revents == 0;
}

bool Connection::receive(api::ClientFrame& frame) {
  std::array<char, 4096> chunk{};
  for (;;) {
    auto payload = reader_.next();
    if (!payload) return false;
    if (payload->has_value()) return frame.ParseFromString(**payload);
    if (!wait_readable()) return false;
    const ssize_t count = read(fd_.get(), chunk.data(), chunk.size());
    if (count <= 0) return false;
    reader_.push({chunk.data(), static_cast<std::size_t>(count)});
  }
}

void Connection::send(const api::ServerFrame& frame) { send_raw(encode_frame(frame.SerializeAsString())); }

void Connection::send_raw(const std::string& bytes) {
  // Small enough for the socket's buffer; the hook may have gone.
  [[maybe_unused]] const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

void Connection::wait_for_end() {
  api::ClientFrame frame;
  while (receive(frame)) continue;
}

FakeDaemon::FakeDaemon(const std::string& socket_path, Behaviour behaviour) : behaviour_(std::move(behaviour)) {
  auto listening = listen_unix(socket_path, 0600, SOCK_STREAM);
  ck_assert_msg(listening.has_value(), "%s", listening ? "" : listening.error().message.c_str());
  listening_ = std::move(*listening);
  stop_ = UniqueFd(eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { serve(); });
}

FakeDaemon::~FakeDaemon() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void FakeDaemon::serve() {
  for (;;) {
    std::array<pollfd, 2> ready = {pollfd{listening_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
    if (poll(ready.data(), ready.size(), 60'000) <= 0 || ready[1].revents != 0) return;
    UniqueFd fd(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) continue;
    ++accepted_;
    Connection connection(std::move(fd), stop_.get());
    behaviour_(connection, *this);
  }
}

void FakeDaemon::record(const api::HookCall& call) {
  const std::lock_guard lock(mutex_);
  calls_.push_back(call);
}

std::vector<api::HookCall> FakeDaemon::calls() {
  const std::lock_guard lock(mutex_);
  return calls_;
}

FakeDaemon::Behaviour answer(command::Code code, const std::string& message) {
  return [code, message](Connection& connection, FakeDaemon& daemon) {
    api::ClientFrame in;
    while (connection.receive(in)) {
      api::ServerFrame out;
      out.set_id(in.id());
      out.mutable_status()->set_code(in.has_hello() ? command::CODE_OK : code);
      if (in.has_hello()) {
        out.mutable_hello()->set_version(kApiVersion);
      } else {
        daemon.record(in.hook_call());
        out.mutable_status()->set_message(message);
      }
      connection.send(out);
    }
  };
}

}  // namespace usblease::hook::testing
