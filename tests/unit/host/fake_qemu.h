// Children that look like a guest's QEMU to us: they hold the lock of libvirt's PID file and carry -uuid.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "common/fd.h"
#include "common/unix_socket.h"
#include "tests/lib/check_suite.h"

namespace usblease::test {

// A child that becomes a program with a command line of our choice; ends with the test at the latest.
class Child {
 public:
  // `pid_file`: when not empty, its PID is written there and the lock is held, as libvirt does before exec.
  // `connect_to`: when not empty, it is connected to that Unix socket.
  // `speaks`: as soon as it runs it says a byte there, with that library loaded ("": none), and ends with the stream.
  Child(const std::string& pid_file, const std::string& uuid, const std::string& connect_to = "",
        const std::optional<std::string>& speaks = std::nullopt) {
    int ready[2];
    ck_assert_int_eq(pipe2(ready, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) become_guest(pid_file, uuid, connect_to, speaks);
    close(ready[1]);
    char none = 0;
    ck_assert_int_eq(read(ready[0], &none, 1), 0);  // closed by exec
    close(ready[0]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { end(); }
  void end() {
    if (pid_ == 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  // It ended by itself; then it is reaped.
  bool ended() {
    if (pid_ != 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = 0;
    return pid_ == 0;
  }
  void kill_only() const { kill(pid_, SIGKILL); }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  [[noreturn]] static void become_guest(const std::string& pid_file, const std::string& uuid,
                                        const std::string& connect_to, const std::optional<std::string>& speaks) {
    if (!pid_file.empty()) {
      const int fd = open(pid_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      struct flock lock {};
      lock.l_type = F_WRLCK;
      const std::string text = std::to_string(getpid());
      if (fcntl(fd, F_SETLK, &lock) != 0 || write(fd, text.data(), text.size()) < 0) _exit(1);
    }
    if (!connect_to.empty()) {
      auto fd = connect_unix(connect_to, 5000, SOCK_STREAM);
      if (!fd || dup2(fd->get(), 9) < 0 || fcntl(9, F_SETFL, 0) != 0) _exit(1);  // it blocks when it reads
    }
    if (speaks && !speaks->empty()) setenv("LD_PRELOAD", speaks->c_str(), 1);
    const char* const script = speaks ? "printf x >&9; cat <&9 >/dev/null" : "read -r forever < \"$0\"";
    execl("/bin/sh", "qemu-system-x86_64", "-c", script, "/proc/self/fd/0", "-uuid", uuid.c_str(), nullptr);
    _exit(1);
  }
  pid_t pid_ = 0;
};

// The children read from the standard input, which stays open and silent.
class SilentInput {
 public:
  SilentInput() {
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    dup2(ends[0], 0);
    close(ends[0]);
    keep_.reset(ends[1]);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  }

 private:
  UniqueFd keep_;
};

}  // namespace usblease::test
