#include "daemon/host/guest_sockets.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "common/boottime.h"
#include "common/log.h"
#include "common/unix_socket.h"

namespace usblease::host {
namespace {

// QEMU runs as a user that libvirt's configuration chooses. Anybody may therefore try to connect; who gets in is
// decided by the process behind the connection, never by the mode of the inode.
constexpr mode_t kSocketMode = 0666;
constexpr mode_t kDirectoryMode = 0711;
constexpr std::uint64_t kWarningGapNs = 1'000'000'000;

Result<void> make_directory(const std::string& path) {
  if (mkdir(path.c_str(), kDirectoryMode) == 0 || errno == EEXIST) {
    if (chmod(path.c_str(), kDirectoryMode) == 0) return {};
  }
  return fail_errno("cannot make the directory " + path, errno);
}

}  // namespace

GuestSockets::GuestSockets(std::string run_dir, std::string libvirt_run_dir, std::function<void(GuestStream)> connected)
    : run_dir_(std::move(run_dir)), libvirt_run_dir_(std::move(libvirt_run_dir)), connected_(std::move(connected)) {}

// The inodes stay: a start that runs while the daemon restarts gets "connection refused", and the next daemon replaces
// them.
GuestSockets::~GuestSockets() = default;

Result<void> GuestSockets::open(const std::string& guest_uuid, const std::string& guest_name,
                                const std::string& device) {
  const Name name{guest_uuid, device};
  if (sockets_.contains(name)) return {};
  for (const std::string& directory : {run_dir_ + "/guests", run_dir_ + "/guests/" + guest_uuid}) {
    if (auto made = make_directory(directory); !made) return made;
  }
  auto fd = listen_unix(path(guest_uuid, device), kSocketMode, SOCK_STREAM);
  if (!fd) return tl::unexpected(fd.error());
  Socket& socket = sockets_[name];
  socket.guest_name = guest_name;
  socket.fd = std::move(*fd);
  socket.watch = watch_fd(socket.fd.get(), G_IO_IN, [this, name](GIOCondition /*ready*/) { accept_one(name); });
  return {};
}

void GuestSockets::close(const std::string& guest_uuid, const std::string& device) {
  if (sockets_.erase({guest_uuid, device}) == 0) return;
  unlink(path(guest_uuid, device).c_str());
  rmdir((run_dir_ + "/guests/" + guest_uuid).c_str());  // fails while other devices are there, as it should
}

// One a wake-up: whoever connects in a loop shares the main loop with everybody else.
void GuestSockets::accept_one(const Name& name) {
  const auto socket = sockets_.find(name);
  if (socket == sockets_.end()) return;
  UniqueFd peer(accept4(socket->second.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!peer) return;
  auto process = verify_peer(peer.get(), libvirt_run_dir_, socket->second.guest_name, name.first);
  if (!process) {
    const std::uint64_t now_ns = boottime_now_ns();
    if (now_ns < next_warning_ns_) return;
    next_warning_ns_ = now_ns + kWarningGapNs;
    log::warning("turned away a process that is not the guest's QEMU", {{"DEVICE", name.second},
                                                                        {"GUEST", socket->second.guest_name},
                                                                        {"GUEST_UUID", name.first},
                                                                        {"ERROR", process.error().message}});
    return;
  }
  connected_(GuestStream{name.first, name.second, std::move(peer), std::move(*process)});
}

}  // namespace usblease::host
