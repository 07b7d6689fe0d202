// The two doors of a USB device on this host's bus: the fence in the kernel, which says who may use it until when, and
// its driver, without which nobody can, and whose unbinding ends whatever was begun.
//
// Calls return at once; what may block runs on other threads, where the calls on the driver of one port run one after
// another, and so do those on its fence. A driver that hangs does not hold up the fence. Callbacks run on the main
// loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "daemon/host/usb_holder.h"
#include "daemon/host/usb_place.h"

namespace usblease::host {

struct UsbLease {
  std::uint64_t token = 0;
  std::uint64_t deadline_ns = 0;  // CLOCK_BOOTTIME
};

class UsbGate {
 public:
  template <typename T>
  using Done = std::function<void(Result<T>)>;

  UsbGate() = default;
  UsbGate(const UsbGate&) = delete;
  UsbGate& operator=(const UsbGate&) = delete;
  virtual ~UsbGate() = default;

  // Whether the fence in the kernel is there; kUnavailable says why not. Cheap.
  [[nodiscard]] virtual Result<void> check_kernel() const = 0;

  // Only this holder may use it, until the deadline. The same token again names another holder, or a later deadline.
  // Fails as fence::KernelFence::arm.
  virtual void arm(const UsbPlace& place, const UsbLease& lease, const UsbHolder& holder, Done<void> done) = 0;
  // A later deadline; what fails is logged: the lease ends sooner.
  virtual void extend(const UsbPlace& place, const UsbLease& lease) = 0;
  // From now on nobody may. kUnavailable: there is no fence, so somebody might.
  virtual void disarm(const UsbPlace& place, std::uint64_t token, Done<void> done) = 0;
  // What the kernel has; token 0: nothing.
  virtual void look(const UsbPlace& place, Done<UsbLease> done) = 0;

  // How many calls it has refused since each is managed, in the same order; 0: not in its table.
  virtual void count_refused(const std::vector<UsbPlace>& places, Done<std::vector<std::uint64_t>> done) = 0;

  // Fresh for its holder: unbound, whoever had it, bound again without the host's own drivers, and, with `reset`,
  // reset: a driver that is unbound in the middle of a transfer leaves the device waiting for the rest. For the reset
  // this process must be its holder.
  virtual void bind(const UsbPlace& place, bool reset, Done<void> done) = 0;
  // Every open handle and every queued transfer is dead when it is done. Unplugged meanwhile: fine.
  virtual void unbind(const UsbPlace& place, Done<void> done) = 0;
};

// `run_dir`: where it keeps what must be put back if it dies (fencer::Binding).
std::unique_ptr<UsbGate> make_usb_gate(const std::string& run_dir);

}  // namespace usblease::host
