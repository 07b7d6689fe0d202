// Devices that this host hot-plugs into its running guests: attaches after the grant, detaches after the end, and tells
// whoever waits. Level-triggered: every pushed record and every event brings what is nearer to what should be.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/hypervisor.h"
#include "daemon/host/starts.h"

namespace usblease::host {

class Attachments {
 public:
  using Done = std::function<void(Result<void>)>;
  // Gives a lease back whose device could not be attached.
  using GiveBack = std::function<void(const record::Lease&, const std::string& device, const std::string& why)>;

  // Opens a device on this host's own bus for this start of a guest; `opened` with where it is. False: it is another
  // kind of device, reached over its guest socket.
  using OpenUsb = std::function<bool(const std::string& device, const record::Lease&, const GuestStart&,
                                     std::function<void(Result<UsbAddress>)> opened)>;

  Attachments(Hypervisor& hypervisor, GuestSockets& sockets, Starts& starts, std::string host_id, GiveBack give_back,
              OpenUsb open_usb);

  void on_record(const record::Device& device);
  void on_running(const GuestStart& start);  // its devices can be attached now
  void on_streaming(const std::string& device, std::uint64_t token);
  void on_stream_ended(const std::string& device, std::uint64_t token, const std::string& why);
  void on_removed(const std::string& guest_uuid, const std::string& device);  // by somebody else
  // After libvirt (re)connected: what it shows attached, and no lease stands for, is removed.
  void reconcile(const std::vector<Guest>& guests);

  // Whether a guest may have the device attached, under whatever lease: nobody knows before libvirt was asked.
  [[nodiscard]] bool may_have(const std::string& device) const;

  // `done` when packets flow for this token, or it has failed; at most kAttachMax later.
  void wait(const std::string& device, std::uint64_t token, Done done);

 private:
  enum class Phase : std::uint8_t { kAttaching, kAttached, kDetaching };
  struct Entry {
    Phase phase = Phase::kAttaching;
    std::uint64_t token = 0;
  };
  using Name = std::pair<std::string, std::string>;  // guest UUID, device
  struct Waiter {
    Done done;
    SourceHandle timeout;
  };

  [[nodiscard]] const record::Lease* wanted(const std::string& device) const;
  void drive(const std::string& device);
  void attach(const Name& name, const record::Lease& lease, const GuestStart& start);
  void attach_usb(const Name& name, std::uint64_t token, const Result<UsbAddress>& opened);
  void attached(const Name& name, std::uint64_t token, const Result<void>& result);
  void detach(const Name& name);
  void settle(const std::string& device, std::uint64_t token, const Result<void>& result);

  Hypervisor& hypervisor_;
  GuestSockets& sockets_;
  Starts& starts_;
  std::string host_id_;
  GiveBack give_back_;
  OpenUsb open_usb_;
  bool reconciled_ = false;
  std::map<std::string, record::Device> records_;
  std::map<Name, Entry> entries_;
  std::map<std::string, std::uint64_t> streaming_;  // device → token
  std::map<std::pair<std::string, std::uint64_t>, std::vector<Waiter>> waiters_;
  std::map<std::string, SourceHandle> retries_;  // by device
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
