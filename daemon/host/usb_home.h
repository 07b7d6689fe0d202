// A device on this host's own USB bus at its home: which instance is plugged in, for whom it is open, and how it is
// fenced. A guest of this host has it by <hostdev>, so its QEMU opens the device's usbfs node itself, and two doors
// stand before that (usb_gate.h): the fence in the kernel, which lets only that QEMU through and only until the
// deadline, and the driver.
//
//   granted → armed on disk → armed in the kernel for the guest's QEMU → bound → attached
//   over    → disarmed in the kernel → unbound → (without the kernel: given up by QEMU) → floor on disk → confirmed
//
// What does not come to its end in time climbs the ladder: the guest is destroyed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "common/main_loop.h"
#include "daemon/host/device_home.h"
#include "daemon/host/usb_bus.h"
#include "daemon/host/usb_gate.h"
#include "daemon/host/usb_place.h"

namespace usblease::host {

// What homes on the bus ask of the rest of this host.
struct UsbHooks {
  // Whether a QEMU of this host may still have the device open, under whatever lease.
  std::function<bool(const std::string& device)> in_use;
  // Asks the guest's QEMU to give it up.
  std::function<void(const record::Lease& lease, const UsbPlace& place)> give_up;
  // Ends the guest that holds it.
  std::function<void(const record::Lease& lease)> destroy;
  // The device went away under a lease that stood.
  std::function<void(const std::string& device, const record::Lease& lease)> unplugged;
};

class UsbHome final : public DeviceHome {
 public:
  using Done = std::function<void(Result<UsbPlace>)>;
  UsbHome(DeviceConfig config, HomeContext& context, UsbGate& gate, const UsbHooks& hooks, HomeRole role);

  // What is plugged in as this device, at the start and whenever it changes.
  void on_sighting(const UsbSighting& sighting);

  void report() override;
  void on_record(const record::Device& device) override;
  void fence(std::uint64_t token) override;
  void set_deadline(std::uint64_t token, std::uint64_t deadline_ns) override;

  // Opens the device for the lease of this token and this process alone. `done` when it may open the node, with where
  // that is. Again, for another process: it has the device from then on.
  void open_for(std::uint64_t token, const UsbHolder& holder, Done done);

  // Where it is while it is neither being opened nor fenced.
  [[nodiscard]] std::optional<UsbPlace> calm_place() const;
  // The greatest token whose end has begun.
  [[nodiscard]] std::uint64_t dead_through() const { return dead_through_; }

 private:
  struct Opening {
    std::uint64_t token;
    UsbHolder holder;
    UsbPlace place;
    bool in_kernel = false;
    Done done;
  };
  struct Open {
    std::uint64_t token;
    UsbPlace place;
    bool in_kernel = false;
    std::uint64_t deadline_ns = 0;
    SourceHandle expiry;
  };
  struct Ending {
    std::uint64_t token;
    UsbPlace place;
    bool in_kernel = false;  // the kernel lets nobody through any more
    bool destroyed = false;
    std::uint64_t begun_ns = 0;
    SourceHandle retry;
    SourceHandle climb;
  };

  void fenced_on_disk(std::uint64_t token) override;
  void describe(record::Identity& identity) const override;
  const char* noun() const override { return "the device"; }

  void look_again();
  void appear(const UsbPlace& place);
  void leave(const std::string& why);
  void adopt_open(const record::Lease& lease);
  void adopted(std::uint64_t token, const Result<UsbLease>& kernel);
  [[nodiscard]] Result<void> may_open(std::uint64_t token) const;
  [[nodiscard]] Result<void> still_opening(std::uint64_t token) const;
  void armed_on_disk(std::uint64_t token, const Result<void>& stored);
  void bind(std::uint64_t token, const Result<void>& armed);
  void bound(std::uint64_t token, const Result<void>& result);
  void give_up_opening(const std::string& why);
  void change_holder(const UsbHolder& holder, Done done);
  void set_open(std::uint64_t token, const UsbPlace& place, bool in_kernel, std::uint64_t deadline_ns);
  void watch_deadline();
  void disarmed(std::uint64_t token, const Result<void>& result);
  void unbind(std::uint64_t token);
  void unbound(std::uint64_t token, const Result<void>& result);
  void climb(std::uint64_t token);

  UsbGate& gate_;
  const UsbHooks& hooks_;
  UsbSighting sighting_;
  bool looked_ = false;            // at the bus
  std::optional<UsbPlace> place_;  // of instance_; it may be gone
  std::optional<Opening> opening_;
  std::optional<Open> open_;
  std::optional<Ending> ending_;
  std::uint64_t adopting_ = 0;
  usb::UsbDevice seen_;
};

}  // namespace usblease::host
