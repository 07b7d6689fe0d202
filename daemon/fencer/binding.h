// The usb driver of a device, by sysfs. To unbind it kills every open usbfs handle and every queued transfer for good,
// also after it is bound again; writing 0 to `authorized` does not.
//
// All of it blocks for as long as the device's driver takes, which for a bad device is seconds: never on a main loop.
#pragma once

#include <set>
#include <string>

#include "common/error.h"
#include "plugin/bpf/device_number.h"

namespace usblease::fencer {

class Binding {
 public:
  explicit Binding(std::string sysfs = "/sys") : sysfs_(std::move(sysfs)) {}

  // The device's name in sysfs, "1-2.4". kNotFound: it is not plugged in. kRefused: it is a root hub.
  [[nodiscard]] Result<std::string> port_of(fence::DeviceNumber device) const;
  // Whether the usb driver has it. A device that is being unbound counts as unbound before the end.
  [[nodiscard]] bool is_bound(const std::string& port) const;

  // When it returns without an error, whoever had the device has it no more, even if somebody else began the unbinding.
  // Unbound already, or unplugged: fine.
  [[nodiscard]] Result<void> unbind(const std::string& port) const;
  // As bind(), but none of the host's drivers gets an interface: for a holder who opens the device through usbfs. It
  // must be unbound. While it is bound, no new interface on its bus is authorised (interface_authorized_default); what
  // another device missed by that is made up for. `marker_directory` keeps the setting of a bus for who must put it
  // back when this process dies meanwhile: restore_defaults(). Not by two processes at a time.
  [[nodiscard]] Result<void> bind_without_drivers(const std::string& port, const std::string& marker_directory) const;
  // Puts back what a process that died had set. At a start.
  void restore_defaults(const std::string& marker_directory) const;
  // Bound already: fine. Sets `authorized`, so that a device that somebody deauthorised works for its holder.
  [[nodiscard]] Result<void> bind(const std::string& port) const;

 private:
  [[nodiscard]] std::string interface_default(const std::string& bus) const;
  [[nodiscard]] std::set<std::string> unauthorised(const std::string& bus) const;
  void authorise(const std::string& interface, bool probe) const;
  std::string sysfs_;
};

}  // namespace usblease::fencer
