// Looks now and then whether the kernel has refused calls on this host's devices, and tells the coordinator, so that it
// stands among the cluster's events. Who it was, only the fencer's log knows.
//
// What the last holder's QEMU still tries while its device is taken from it is no news, and not told.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/main_loop.h"
#include "daemon/cluster/link.h"
#include "daemon/host/usb_gate.h"

namespace usblease::host {

class UsbRefusals {
 public:
  // A device that is neither being opened nor fenced. `stay`: another number after each time that it was.
  struct Calm {
    UsbPlace place;
    std::uint64_t stay = 0;

    bool operator==(const Calm&) const = default;
  };
  using CalmDevices = std::function<std::map<std::string, Calm>()>;

  // Each look may write an event, and anybody with root can make the kernel refuse something: not too often.
  static constexpr std::uint64_t kLookNs = 10'000'000'000;

  UsbRefusals(UsbGate& gate, cluster::CoordinatorLink& link, std::string host_id, CalmDevices calm,
              std::uint64_t look_ns = kLookNs);
  UsbRefusals(const UsbRefusals&) = delete;
  UsbRefusals& operator=(const UsbRefusals&) = delete;

 private:
  struct Seen {
    Calm calm;
    std::uint64_t refused = 0;
  };
  void look_soon();
  void look();
  void take(const std::string& device, const Seen& seen);

  UsbGate& gate_;
  cluster::CoordinatorLink& link_;
  const std::string host_id_;
  const CalmDevices calm_;
  const std::uint64_t look_ns_;
  std::map<std::string, Seen> seen_;
  SourceHandle timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
