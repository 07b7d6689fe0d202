// What sysfs says about USB devices: who is plugged in, and which of them a node, a SCSI host, a network interface or a
// PCI device belongs to. Reads only; every walk is bounded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace usblease::usb {

struct UsbDevice {
  std::string name;  // "1-2.4": bus and port path; "usb1": a root hub
  std::string path;  // real path in sysfs
  std::uint32_t bus = 0;
  std::uint32_t device = 0;
  std::uint32_t vendor = 0;
  std::uint32_t product = 0;
  std::string serial;  // as the device says it, untrusted; at most 256 bytes
  bool hub = false;
  // The same socket on the bus of the other speed (USB 2 and 3), named as a device there would be; "": it has none.
  std::string peer_port;

  // Of its directory in sysfs: another one each time that it is plugged in (or resets as something else); never 0.
  std::uint64_t inode = 0;

  bool operator==(const UsbDevice&) const = default;
};

class Sysfs {
 public:
  explicit Sysfs(std::string root = "/sys") : root_(std::move(root)) {}

  // Every USB device that is plugged in, hubs as well; at most 4096. Empty on a kernel without USB.
  [[nodiscard]] std::vector<UsbDevice> usb_devices() const;

  // What is plugged in at a port now, "1-2.4": its inode as in UsbDevice. 0: nothing.
  [[nodiscard]] std::uint64_t inode_at(const std::string& port) const;

  // The USB devices above a block or character device node, through any symbolic links and, for a stacked block device
  // (device mapper, md), above everything that it stands on. Empty when the node is absent or is no device.
  [[nodiscard]] std::vector<UsbDevice> usb_above_node(const std::string& path) const;
  [[nodiscard]] std::vector<UsbDevice> usb_above_scsi_host(std::uint32_t host) const;
  [[nodiscard]] std::vector<UsbDevice> usb_above_interface(const std::string& name) const;

  // The USB devices below a PCI device, "0000:00:14.0": not empty for a USB controller with its own driver.
  [[nodiscard]] std::vector<UsbDevice> usb_below_pci(const std::string& address) const;

 private:
  [[nodiscard]] std::vector<UsbDevice> usb_above(const std::string& link) const;
  std::string root_;
};

}  // namespace usblease::usb
