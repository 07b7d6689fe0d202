// What is plugged into this host's own USB bus, as far as it is managed: which device is where, and which is not there.
//
// Level-triggered: whatever udev says, the bus is looked at anew, and who listens is told what has changed. So a lost
// event costs nothing but time, and a replug that was too quick to be seen is seen by its new device number.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "common/main_loop.h"
#include "common/managed.h"
#include "common/usb_sysfs.h"

typedef struct _GUdevClient GUdevClient;  // NOLINT: as gudev declares it

namespace usblease::host {

struct UsbSighting {
  // Set when exactly one thing that is plugged in is this device.
  std::optional<usb::UsbDevice> device;
  std::string detail;  // for people: where it is, or why it cannot be told

  bool operator==(const UsbSighting&) const = default;
};

class UsbBus {
 public:
  using Changed = std::function<void(const std::string& device, const UsbSighting& sighting)>;

  // `config` must outlive it. `sysfs` is for tests.
  explicit UsbBus(const Config& config, std::string sysfs = "/sys");
  ~UsbBus();
  UsbBus(const UsbBus&) = delete;
  UsbBus& operator=(const UsbBus&) = delete;

  // Looks, calls `changed` for each device with usb= in the configuration, and from then on at each change: after
  // udev's rules for the device have run, not before.
  void start(Changed changed);

  // Looks now. For tests; udev's events do the same.
  void look();

 private:
  struct Unref {
    void operator()(GUdevClient* client) const;
  };
  [[nodiscard]] std::map<std::string, UsbSighting> see() const;

  const Config& config_;
  usb::Managed managed_;
  usb::Sysfs sysfs_;
  Changed changed_;
  std::map<std::string, UsbSighting> seen_;
  std::unique_ptr<GUdevClient, Unref> udev_;
  SourceHandle soon_;
};

}  // namespace usblease::host
