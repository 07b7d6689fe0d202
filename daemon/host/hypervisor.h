// What this host's hypervisor can do for us. One real implementation (libvirt_hypervisor.h), one for tests.
// All calls and callbacks are on the main loop's thread; no call blocks it. Callbacks run at most once, bounded by
// kCallTimeoutMs, never inside the call.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/assignments.h"
#include "common/error.h"

namespace usblease::host {

// Of one call, waiting for its turn included. libvirt waits up to 30 s for a guest on which another call hangs. A
// change that was given up may still happen.
inline constexpr std::uint32_t kCallTimeoutMs = 40'000;

struct Guest {
  std::string uuid;  // canonical lower case
  std::string name;
  bool running = false;
  int domain_id = -1;                 // libvirt's, -1 when not running
  pid_t pid = 0;                      // of its QEMU, 0 when not running or not known
  std::vector<std::string> attached;  // device names found in aliases ua-usblease-NAME
};

// A device on the host's own bus, as it is numbered there now.
struct UsbAddress {
  std::uint32_t bus = 0;
  std::uint32_t device = 0;
};

struct HypervisorEvents {
  // The connection came up (first or again): all guests, running or not. Whoever is not in it does not run.
  std::function<void(std::vector<Guest>)> connected;
  std::function<void(std::string why)> disconnected;
  std::function<void(Guest)> guest_started;
  std::function<void(std::string uuid)> guest_stopped;
  // A device of ours vanished from a running guest, by whomever (alias ua-usblease-NAME).
  std::function<void(std::string uuid, std::string device)> device_removed;
};

class Hypervisor {
 public:
  Hypervisor() = default;
  Hypervisor(const Hypervisor&) = delete;
  Hypervisor& operator=(const Hypervisor&) = delete;
  virtual ~Hypervisor() = default;

  virtual void start(HypervisorEvents events) = 0;

  template <typename T>
  using Done = std::function<void(Result<T>)>;

  // By name or UUID. kNotFound: no such guest, naming it; kUnavailable: libvirt is away.
  virtual void find_guest(std::string name_or_uuid, Done<Guest> done) = 0;
  virtual void list_guests(Done<std::vector<Guest>> done) = 0;

  // Hot-plugs a usbredir device whose stream is the Unix socket at `socket_path`, alias ua-usblease-DEVICE.
  virtual void attach_endpoint(std::string guest_uuid, std::string device, std::string socket_path,
                               Done<void> done) = 0;
  // Hot-plugs a device of this host's bus by <hostdev>, alias ua-usblease-DEVICE. The host's driver is ours to bind.
  virtual void attach_usb(std::string guest_uuid, std::string device, UsbAddress address, Done<void> done) = 0;
  // Removes a device of this host's bus that the guest's own XML names; one that is not there is success.
  virtual void detach_usb(std::string guest_uuid, UsbAddress address, Done<void> done) = 0;
  // Ends the guest at once, as pulling its plug; one that does not run is success.
  virtual void destroy(std::string guest_uuid, Done<void> done) = 0;
  // Removes the device with that alias; a device or guest that is not there is success.
  virtual void detach(std::string guest_uuid, std::string device, Done<void> done) = 0;

  // Adds, changes or (remove) takes away one assignment in the guest's persistent metadata, and in the live one when it
  // runs. The result says whether anything changed.
  virtual void assign(std::string guest, Assignment assignment, bool remove, Done<bool> done) = 0;

  [[nodiscard]] virtual bool is_connected() const = 0;
  [[nodiscard]] virtual std::string describe() const = 0;  // URI and version, or why it is away
};

}  // namespace usblease::host
