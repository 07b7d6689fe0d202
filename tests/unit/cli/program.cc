#include "tests/unit/cli/program.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>

#include "common/unix_socket.h"
#include "tests/unit/cli/cases.h"

using namespace usblease;

namespace {

constexpr int kBoundMs = 20'000;

std::string g_directory;  // NOLINT: made before the fork, removed after it

void wait_readable(int fd, const char* what) {
  pollfd waiting{fd, POLLIN, 0};
  int count = -1;
  do {
    count = poll(&waiting, 1, kBoundMs);
  } while (count < 0 && errno == EINTR);
  ck_assert_msg(count == 1, "waited too long for %s", what);
}

std::string content(int fd) {
  std::string out;
  std::array<char, 4096> chunk{};
  for (off_t at = 0;;) {
    const ssize_t count = pread(fd, chunk.data(), chunk.size(), at);
    if (count <= 0) return out;
    out.append(chunk.data(), static_cast<std::size_t>(count));
    at += count;
  }
}

// A file in memory tells nobody that it grew, so this looks again and again.
void wait_content(int fd, const std::string& text) {
  for (int waited_ms = 0; content(fd).find(text) == std::string::npos; waited_ms += 5) {
    ck_assert_msg(waited_ms < kBoundMs, "\"%s\" was not written, but: %s", text.c_str(), content(fd).c_str());
    poll(nullptr, 0, 5);
  }
}

}  // namespace

void make_test_directory() {
  char name[] = "/tmp/usblease-cli-XXXXXX";
  g_directory = g_mkdtemp(name) != nullptr ? name : "";
}

void remove_test_directory() {
  std::error_code ignored;
  if (!g_directory.empty()) std::filesystem::remove_all(g_directory, ignored);
}

const std::string& test_directory() { return g_directory; }
std::string test_socket() { return g_directory + "/sock"; }

api::ClientFrame Peer::receive() {
  for (;;) {
    auto payload = reader_.next();
    ck_assert_msg(payload.has_value(), "the program sent no frame");
    if (payload->has_value()) {
      api::ClientFrame frame;
      ck_assert(frame.ParseFromString(**payload));
      return frame;
    }
    wait_readable(fd_.get(), "a frame of the program");
    std::array<char, 4096> chunk{};
    const ssize_t count = read(fd_.get(), chunk.data(), chunk.size());
    ck_assert_msg(count > 0, "the program hung up");
    reader_.push({chunk.data(), static_cast<std::size_t>(count)});
  }
}

void Peer::greet() {
  const auto hello = receive();
  ck_assert(hello.has_hello());
  ck_assert_uint_eq(hello.hello().version(), kApiVersion);
  api::ServerFrame reply;
  reply.mutable_hello()->set_version(kApiVersion);
  finish(hello, reply);
}

void Peer::send(const api::ServerFrame& frame) { send_raw(encode_frame(frame.SerializeAsString())); }

void Peer::finish(const api::ClientFrame& request, api::ServerFrame frame) {
  frame.set_id(request.id());
  frame.mutable_status()->set_code(command::CODE_OK);
  send(frame);
}

void Peer::fail(const api::ClientFrame& request, command::Code code, const std::string& message) {
  api::ServerFrame frame;
  frame.set_id(request.id());
  frame.mutable_status()->set_code(code);
  frame.mutable_status()->set_message(message);
  send(frame);
}

void Peer::send_raw(const std::string& bytes) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t count = ::send(fd_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EAGAIN) {
      pollfd waiting{fd_.get(), POLLOUT, 0};
      ck_assert_int_eq(poll(&waiting, 1, kBoundMs), 1);
      continue;
    }
    if (count < 0 && errno == EPIPE) return;  // the program had enough
    ck_assert_int_gt(count, 0);
    sent += static_cast<std::size_t>(count);
  }
}

void Peer::wait_closed() {
  char byte = 0;
  wait_readable(fd_.get(), "the program's end of the connection");
  const ssize_t count = read(fd_.get(), &byte, 1);
  ck_assert_msg(count == 0 || (count < 0 && errno == ECONNRESET), "the program still talks");
}

FakeDaemon::FakeDaemon() {
  auto listening = listen_unix(test_socket(), 0600, SOCK_STREAM);
  ck_assert_msg(listening.has_value(), "cannot listen");
  listening_ = std::move(*listening);
}

FakeDaemon::~FakeDaemon() {
  listening_.reset();
  unlink(test_socket().c_str());
}

Peer FakeDaemon::accept(bool greet) {
  wait_readable(listening_.get(), "the program to connect");
  Peer peer(UniqueFd(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC)));
  if (greet) peer.greet();
  return peer;
}

Program::Program(std::vector<std::string> arguments, const std::string& input, Streams streams) {
  if (arguments.empty() || arguments[0] != "--complete") {
    arguments.insert(arguments.begin(), {"-c", test_socket()});
  }
  if (streams == Streams::kTerminal) {
    winsize size{24, 60, 0, 0};
    int main_fd = -1;
    int other_fd = -1;
    ck_assert_int_eq(openpty(&main_fd, &other_fd, nullptr, nullptr, &size), 0);
    terminal_.reset(main_fd);
    input_.reset(other_fd);
    output_.reset(dup(other_fd));
    errors_.reset(dup(other_fd));
  } else {
    input_.reset(memfd_create("input", MFD_CLOEXEC));
    ck_assert_int_eq(write(input_.get(), input.data(), input.size()), static_cast<ssize_t>(input.size()));
    ck_assert_int_eq(lseek(input_.get(), 0, SEEK_SET), 0);
    output_.reset(streams == Streams::kFullOutput ? open("/dev/full", O_WRONLY | O_CLOEXEC)
                                                  : memfd_create("output", MFD_CLOEXEC));
    errors_.reset(memfd_create("errors", MFD_CLOEXEC));
  }
  spawn(arguments);
}

void Program::spawn(const std::vector<std::string>& arguments) {
  std::vector<char*> argv{const_cast<char*>("usblease")};
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) ck_abort_msg("cannot fork");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // LeakSanitizer at the end of a program with this terminal never ends; all other runs look for leaks.
    if (terminal_) setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    setsid();
    dup2(input_.get(), 0);
    dup2(output_.get(), 1);
    dup2(errors_.get(), 2);
    if (terminal_) ioctl(0, TIOCSCTTY, 0);
    setenv("TZ", "UTC", 1);
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    setenv("HOME", test_directory().c_str(), 1);
    setenv("XDG_STATE_HOME", test_directory().c_str(), 1);
    execv(USBLEASE_PROGRAM, argv.data());
    _exit(99);
  }
  pid_fd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  ck_assert_int_ge(pid_fd_.get(), 0);
  if (terminal_) input_.reset(), output_.reset(), errors_.reset();
}

Program::~Program() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

Outcome Program::wait() {
  wait_readable(pid_fd_.get(), "the program to end");
  int status = 0;
  ck_assert_int_eq(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  Outcome out;
  out.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  if (!terminal_) {
    out.out = content(output_.get());
    out.err = content(errors_.get());
  }
  return out;
}

void Program::interrupt() const { kill(pid_, SIGINT); }

void Program::wait_output(const std::string& text) const { wait_content(output_.get(), text); }
void Program::wait_errors(const std::string& text) const { wait_content(errors_.get(), text); }

void Program::wait_editing() const {
  termios now{};
  for (int waited_ms = 0;; waited_ms += 5) {
    ck_assert_int_eq(tcgetattr(terminal_.get(), &now), 0);
    if ((now.c_lflag & static_cast<tcflag_t>(ICANON)) == 0) return;
    ck_assert_msg(waited_ms < kBoundMs, "the program does not read keys one by one");
    poll(nullptr, 0, 5);
  }
}

void Program::type(const std::string& keys) {
  ck_assert_int_eq(write(terminal_.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
}

void Program::read_until(const std::string& text) {
  std::array<char, 4096> chunk{};
  for (std::size_t at = shown_.find(text);; at = shown_.find(text)) {
    if (at != std::string::npos) {
      shown_.erase(0, at + text.size());
      return;
    }
    pollfd waiting{terminal_.get(), POLLIN, 0};
    ck_assert_msg(poll(&waiting, 1, kBoundMs) == 1, "\"%s\" was not shown, but: %s", text.c_str(), shown_.c_str());
    const ssize_t count = read(terminal_.get(), chunk.data(), chunk.size());
    ck_assert_msg(count > 0, "the terminal was closed before \"%s\": %s", text.c_str(), shown_.c_str());
    shown_.append(chunk.data(), static_cast<std::size_t>(count));
  }
}

Exchange exchange(const std::vector<std::string>& arguments, const api::ServerFrame& reply) {
  FakeDaemon daemon;
  Program program(arguments);
  Peer peer = daemon.accept();
  Exchange out;
  out.request = peer.receive();
  peer.finish(out.request, reply);
  out.outcome = program.wait();
  return out;
}
