// One connection to libvirt, with calls that block. For worker threads only, and one call at a time: when two threads
// call on one connection, libvirt before 10.3 may lose a wakeup, and the second call waits for the next keepalive.
#pragma once

#include <libvirt/libvirt.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/assignments.h"
#include "common/error.h"
#include "daemon/host/hypervisor.h"
#include "daemon/host/libvirt_ptr.h"

namespace usblease::host {

// Called on libvirt's event thread, or inside calls; must not block and must not call libvirt.
struct SessionEvents {
  std::function<void(std::string uuid)> guest_changed;  // started, stopped, or the like
  std::function<void(std::string uuid, std::string device)> device_removed;
  std::function<void(std::string why)> broken;
};

// Counts the devices that were removed from guests, so that a detach in one session can wait for the event that another
// one hears. From any thread.
class Removals {
 public:
  std::uint64_t count();
  void note();
  // Returns when some device was removed since `seen` was counted, or after `bound`.
  void wait(std::uint64_t seen, std::chrono::milliseconds bound);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t count_ = 0;
};

class LibvirtSession {
 public:
  // Blocks for as long as libvirtd does not answer. `run_dir`: libvirt's PID files. `removals` are noted by the session
  // that has events, and waited for by the others.
  static Result<std::unique_ptr<LibvirtSession>> open(const std::string& uri, const std::string& run_dir,
                                                      std::shared_ptr<Removals> removals,
                                                      std::optional<SessionEvents> events);
  ~LibvirtSession();
  LibvirtSession(const LibvirtSession&) = delete;
  LibvirtSession& operator=(const LibvirtSession&) = delete;

  // As in hypervisor.h.
  Result<Guest> find_guest(const std::string& name_or_uuid);
  Result<std::vector<Guest>> list_guests();
  Result<void> attach_endpoint(const std::string& uuid, const std::string& device, const std::string& socket_path);
  Result<void> attach_usb(const std::string& uuid, const std::string& device, UsbAddress address);
  Result<void> detach_usb(const std::string& uuid, UsbAddress address);
  Result<void> destroy(const std::string& uuid);
  Result<void> detach(const std::string& uuid, const std::string& device);
  Result<bool> assign(const std::string& guest, const Assignment& assignment, bool remove);

  // False: no call will succeed any more.
  bool is_alive();

  // URI and versions.
  [[nodiscard]] const std::string& description() const { return description_; }

 private:
  class Callbacks;
  explicit LibvirtSession(virConnectPtr connection) : connection_(connection) {}
  Result<void> subscribe(SessionEvents events);
  void describe(const std::string& uri);
  Error error(const std::string& what);  // of the last call of this thread
  Result<DomainPtr> look_up(const std::string& name_or_uuid);
  Guest describe_guest(virDomainPtr domain);
  Result<void> attach(const std::string& uuid, const std::string& device, const std::string& xml);
  // Whether a domain's live XML shows the device.
  using Shown = std::function<bool(const std::string& xml)>;
  bool shows(virDomainPtr domain, const Shown& shown);
  bool wait_until_gone(virDomainPtr domain, const Shown& shown, std::chrono::milliseconds bound);
  // `ask` is libvirt's call that begins it.
  Result<void> take_out(const std::string& uuid, const std::string& what, const Shown& shown,
                        const std::function<int(virDomainPtr)>& ask);
  Result<std::vector<Assignment>> read_assignments(virDomainPtr domain, unsigned int target);
  Result<void> write_assignments(virDomainPtr domain, unsigned int target, const std::vector<Assignment>& assignments);

  const virConnectPtr connection_;
  std::string run_dir_;
  std::string description_;
  std::shared_ptr<Removals> removals_;
  std::shared_ptr<Callbacks> callbacks_;  // of the session that has events
  std::vector<int> callback_ids_;
};

}  // namespace usblease::host
