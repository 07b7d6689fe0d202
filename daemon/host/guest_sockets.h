// The guest sockets of this host: RUN_DIR/guests/UUID/DEVICE, one for each lease or reservation of a guest here.
// Whoever connects is checked against libvirt's word on which process is that guest's QEMU; all others are turned away.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "common/config.h"
#include "common/error.h"
#include "common/fd.h"
#include "common/main_loop.h"
#include "daemon/host/guest_process.h"

namespace usblease::host {

struct GuestStream {
  std::string guest_uuid;
  std::string device;
  UniqueFd fd;            // non-blocking
  GuestProcess process;   // the guest's QEMU, verified
  bool enforces = false;  // it was seen to stop a device at the deadline by itself
};

class GuestSockets {
 public:
  GuestSockets(std::string run_dir, std::string libvirt_run_dir, std::function<void(GuestStream)> connected);
  ~GuestSockets();
  GuestSockets(const GuestSockets&) = delete;
  GuestSockets& operator=(const GuestSockets&) = delete;

  // Idempotent. kRefused: something that is not ours occupies the path.
  Result<void> open(const std::string& guest_uuid, const std::string& guest_name, const std::string& device);
  void close(const std::string& guest_uuid, const std::string& device);
  [[nodiscard]] std::string path(const std::string& guest_uuid, const std::string& device) const {
    return guest_socket_path(run_dir_, guest_uuid, device);
  }

 private:
  struct Socket {
    std::string guest_name;
    UniqueFd fd;
    SourceHandle watch;
  };
  using Name = std::pair<std::string, std::string>;  // guest UUID, device
  void accept_one(const Name& name);

  std::string run_dir_;
  std::string libvirt_run_dir_;
  std::function<void(GuestStream)> connected_;
  std::map<Name, Socket> sockets_;
  std::uint64_t next_warning_ns_ = 0;
};

}  // namespace usblease::host
