#include "daemon/host/guest_process.h"

#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <memory>
#include <string_view>
#include <utility>

#include "common/boottime.h"
#include "common/main_loop.h"
#include "common/text.h"
#include "common/unix_socket.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5; not in older headers
#endif

namespace usblease::host {
namespace {

constexpr std::size_t kCommandLineBytesMax = 256 * 1024;
constexpr std::size_t kStatusBytesMax = 16 * 1024;

UniqueFd open_pidfd(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

// A pidfd is readable when its process has ended.
bool has_ended(int pidfd) {
  pollfd waiting{pidfd, POLLIN, 0};
  return poll(&waiting, 1, 0) != 0;
}

std::string process_text(pid_t pid) { return "process " + std::to_string(pid); }

// At most `most` bytes, as many as there are.
Result<std::string> read_bounded(int fd, const std::string& path, std::size_t most) {
  std::string bytes(most, '\0');
  std::size_t have = 0;
  while (have < most) {
    const ssize_t got = ::read(fd, bytes.data() + have, most - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("cannot read " + path, errno);
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  bytes.resize(have);
  return bytes;
}

// The PID in libvirt's PID file, which must be the holder of the file's lock.
Result<pid_t> pid_from_file(const std::string& run_dir, const std::string& guest_name) {
  const std::string shown = escape_text(guest_name.substr(0, 255));
  if (guest_name.empty() || guest_name.size() > 250 || guest_name.find('/') != std::string::npos) {
    return fail(ErrorCode::kBadInput, "\"" + shown + "\" is not the name of a guest");
  }
  const std::string path = run_dir + "/" + guest_name + ".pid";
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno == ENOENT) return fail(ErrorCode::kNotFound, "guest " + shown + " does not run (no " + path + ")");
  if (!fd) return fail_errno("cannot open " + path, errno);
  auto text = read_bounded(fd.get(), path, 32);
  if (!text) return tl::unexpected(text.error());
  pid_t pid = 0;
  const char* const end = text->data() + text->size();
  const auto parsed = std::from_chars(text->data(), end, pid);
  const std::string_view rest(parsed.ptr, static_cast<std::size_t>(end - parsed.ptr));
  if (parsed.ec != std::errc() || pid <= 1 || (!rest.empty() && rest != "\n")) {
    return fail(ErrorCode::kRefused, path + " does not hold a process id");
  }
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd.get(), F_GETLK, &lock) != 0) return fail_errno("cannot ask for the lock of " + path, errno);
  if (lock.l_type == F_UNLCK) {
    return fail(ErrorCode::kNotFound, "guest " + shown + " does not run (nobody holds the lock of " + path + ")");
  }
  if (lock.l_pid != pid) {
    return fail(ErrorCode::kRefused,
                path + " names " + process_text(pid) + ", but its lock is held by " + process_text(lock.l_pid));
  }
  return pid;
}

// A process writes its own command line: this can only refuse, never admit.
Result<void> check_command_line(pid_t pid, const std::string& guest_uuid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/cmdline";
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(ErrorCode::kRefused, process_text(pid) + " has ended");
  auto line = read_bounded(fd.get(), path, kCommandLineBytesMax);
  if (!line) return tl::unexpected(line.error());
  std::string_view rest = *line;
  bool is_value = false;
  while (!rest.empty()) {
    const auto argument = rest.substr(0, rest.find('\0'));
    if (is_value && argument.size() == guest_uuid.size() &&
        g_ascii_strncasecmp(argument.data(), guest_uuid.data(), argument.size()) == 0) {
      return {};
    }
    is_value = argument == "-uuid";
    rest.remove_prefix(std::min(rest.size(), argument.size() + 1));
  }
  return fail(ErrorCode::kRefused, process_text(pid) + " was not started with -uuid " + guest_uuid);
}

Result<void> check_is_qemu_of(const GuestProcess& process, const std::string& run_dir, const std::string& guest_name,
                              const std::string& guest_uuid) {
  // Where systemd-machined runs, the process's cgroup (machine-qemu\x2d…​.scope) would be a second witness; libvirt
  // does not make one without it, so it cannot be required.
  const auto expected = pid_from_file(run_dir, guest_name);
  if (!expected) return tl::unexpected(expected.error());
  if (*expected != process.pid()) {
    return fail(ErrorCode::kRefused, process_text(process.pid()) + " is not the QEMU of guest " +
                                         escape_text(guest_name) + ", which is " + process_text(*expected));
  }
  if (auto line = check_command_line(process.pid(), guest_uuid); !line) return line;
  // Only now: all that was read above was of the process of this pidfd if it lived all the while.
  if (!process.alive()) return fail(ErrorCode::kRefused, process_text(process.pid()) + " has ended");
  return {};
}

Result<UniqueFd> peer_pidfd(int socket, pid_t pid) {
  int raw = -1;
  socklen_t size = sizeof raw;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &raw, &size) == 0) return UniqueFd(raw);
  if (errno != ENOPROTOOPT) return fail(ErrorCode::kRefused, "the peer, " + process_text(pid) + ", has ended");
  UniqueFd fd = open_pidfd(pid);
  if (!fd) return fail(ErrorCode::kRefused, "the peer, " + process_text(pid) + ", has ended");
  return fd;
}

}  // namespace

Result<GuestProcess> GuestProcess::open(pid_t pid) {
  UniqueFd pidfd = open_pidfd(pid);
  if (!pidfd && errno == ESRCH) return fail(ErrorCode::kNotFound, process_text(pid) + " does not exist");
  if (!pidfd) return fail_errno("cannot open a pidfd of " + process_text(pid), errno);
  return adopt(pid, std::move(pidfd));
}

Result<GuestProcess> GuestProcess::adopt(pid_t pid, UniqueFd pidfd) {
  const auto ticks = process_start_ticks(pid);
  if (!ticks) return tl::unexpected(ticks.error());
  // Alive now, so the ticks were its own.
  if (has_ended(pidfd.get())) return fail(ErrorCode::kNotFound, process_text(pid) + " has ended");
  return GuestProcess(pid, *ticks, std::move(pidfd));
}

bool GuestProcess::alive() const { return !has_ended(pidfd_.get()); }

pid_t pid_for_itself(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/status";
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const auto text = fd ? read_bounded(fd.get(), path, kStatusBytesMax) : Result<std::string>("");
  const auto line = text ? text->find("\nNSpid:") : std::string::npos;
  if (line == std::string::npos) return 0;
  // One number for each namespace, the innermost last.
  const std::string numbers = text->substr(line, text->find('\n', line + 1) - line);
  const auto last = numbers.find_last_of("\t ");
  pid_t own = 0;
  if (last != std::string::npos) std::from_chars(numbers.data() + last + 1, numbers.data() + numbers.size(), own);
  return own;
}

Result<GuestProcess> qemu_of(const std::string& run_dir, const std::string& guest_name) {
  const auto pid = pid_from_file(run_dir, guest_name);
  if (!pid) return tl::unexpected(pid.error());
  auto process = GuestProcess::open(*pid);
  if (!process) return process;
  // The PID may have gone to another process before the pidfd was opened; then nobody holds the lock any more.
  const auto again = pid_from_file(run_dir, guest_name);
  if (!again) return tl::unexpected(again.error());
  if (*again != *pid || !process->alive()) {
    return fail(ErrorCode::kNotFound, "guest " + escape_text(guest_name) + " has just ended");
  }
  return process;
}

Result<GuestProcess> is_qemu_of(pid_t pid, const std::string& run_dir, const std::string& guest_name,
                                const std::string& guest_uuid) {
  auto process = GuestProcess::open(pid);
  if (!process) return fail(ErrorCode::kRefused, process.error().message);
  const auto checked = check_is_qemu_of(*process, run_dir, guest_name, guest_uuid);
  if (!checked) return tl::unexpected(checked.error());
  return process;
}

Result<GuestProcess> verify_peer(int socket, const std::string& run_dir, const std::string& guest_name,
                                 const std::string& guest_uuid) {
  const auto peer = peer_credentials(socket);
  if (!peer) return tl::unexpected(peer.error());
  auto pidfd = peer_pidfd(socket, peer->pid);
  if (!pidfd) return tl::unexpected(pidfd.error());
  auto process = GuestProcess::adopt(peer->pid, std::move(*pidfd));
  if (!process) return fail(ErrorCode::kRefused, "the peer: " + process.error().message);
  const auto checked = check_is_qemu_of(*process, run_dir, guest_name, guest_uuid);
  if (!checked) return tl::unexpected(checked.error());
  return process;
}

struct ExitWatch::State {
  UniqueFd pidfd;
  std::function<void()> callback;
  SourceHandle source;  // after the descriptor that it watches
};

Result<ExitWatch> watch_exit(int pidfd, std::function<void()> callback) {
  ExitWatch watch;
  watch.state_ = std::make_shared<ExitWatch::State>();
  watch.state_->pidfd.reset(fcntl(pidfd, F_DUPFD_CLOEXEC, 0));
  if (!watch.state_->pidfd) return fail_errno("cannot watch a process", errno);
  watch.state_->callback = std::move(callback);
  const std::weak_ptr<ExitWatch::State> weak = watch.state_;
  watch.state_->source = watch_fd(watch.state_->pidfd.get(), G_IO_IN, [weak](GIOCondition /*ready*/) {
    const auto state = weak.lock();
    if (!state) return;
    // An ended process stays readable: the source goes, and before the callback, which may drop the watch.
    state->source.cancel();
    std::exchange(state->callback, nullptr)();
  });
  return watch;
}

}  // namespace usblease::host
