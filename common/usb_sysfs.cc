#include "common/usb_sysfs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <memory>
#include <optional>
#include <set>
#include <string_view>

#include "common/directory.h"
#include "common/fd.h"

namespace usblease::usb {
namespace {

constexpr std::size_t kEntriesMax = 4096;
constexpr std::size_t kVisitedMax = 256;  // block devices that one node stands on
constexpr std::size_t kValueBytesMax = 256;
constexpr std::uint32_t kHubClass = 9;

std::optional<std::string> real_path(const std::string& path) {
  std::array<char, PATH_MAX> out{};
  if (realpath(path.c_str(), out.data()) == nullptr) return std::nullopt;
  return out.data();
}

// A sysfs attribute without its final newline; "" when it is absent.
std::string read_value(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return "";
  std::array<char, kValueBytesMax> buffer{};
  const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
  std::string value(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  if (!value.empty() && value.back() == '\n') value.pop_back();
  return value;
}

std::optional<std::uint32_t> read_number(const std::string& path, int base) {
  const std::string text = read_value(path);
  std::uint32_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return number;
}

// sysfs's name of a port, "usb2-port1" or "2-1-port3", as that of a device which is plugged in there, "2-1" or "2-1.3".
std::string device_at_port(const std::string& port) {
  static constexpr std::string_view kMark = "-port";
  static constexpr std::string_view kRootHub = "usb";
  const auto mark = port.rfind(kMark);
  if (mark == std::string::npos) return "";
  const std::string hub = port.substr(0, mark);
  const std::string number = port.substr(mark + kMark.size());
  return hub.rfind(kRootHub, 0) == 0 ? hub.substr(kRootHub.size()) + "-" + number : hub + "." + number;
}

std::uint64_t inode_of(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

// nullopt: no USB device lies at this real path (an interface of one, or something else).
std::optional<UsbDevice> usb_device_at(const std::string& path) {
  const auto vendor = read_number(path + "/idVendor", 16);
  const auto product = read_number(path + "/idProduct", 16);
  const auto bus = read_number(path + "/busnum", 10);
  const auto device = read_number(path + "/devnum", 10);
  if (!vendor || !product || !bus || !device) return std::nullopt;
  UsbDevice out{path.substr(path.rfind('/') + 1), path, *bus, *device, *vendor, *product, read_value(path + "/serial")};
  out.hub = read_number(path + "/bDeviceClass", 16) == kHubClass;
  if (const auto peer = real_path(path + "/port/peer"))
    out.peer_port = device_at_port(peer->substr(peer->rfind('/') + 1));
  out.inode = inode_of(path);
  return out;
}

}  // namespace

std::uint64_t Sysfs::inode_at(const std::string& port) const { return inode_of(root_ + "/bus/usb/devices/" + port); }

std::vector<UsbDevice> Sysfs::usb_devices() const {
  std::vector<UsbDevice> out;
  const std::string directory = root_ + "/bus/usb/devices/";
  for (const std::string& name : list_names(directory, kEntriesMax)) {
    if (name.find(':') != std::string::npos) continue;  // an interface
    const auto path = real_path(directory + name);
    if (!path) continue;
    if (auto device = usb_device_at(*path)) out.push_back(std::move(*device));
  }
  return out;
}

std::vector<UsbDevice> Sysfs::usb_above(const std::string& link) const {
  std::vector<UsbDevice> out;
  const auto top = real_path(root_);
  std::vector<std::string> to_visit = {link};
  std::set<std::string> visited;
  while (top && !to_visit.empty() && visited.size() < kVisitedMax) {
    auto path = real_path(to_visit.back());
    to_visit.pop_back();
    if (!path || path->rfind(*top + "/", 0) != 0 || !visited.insert(*path).second) continue;
    for (const std::string& below : list_names(*path + "/slaves", kEntriesMax))
      to_visit.push_back(*path + "/slaves/" + below);
    // A partition has no slaves/ of its own; its disk, one up, has.
    for (const std::string& below : list_names(*path + "/../slaves", kEntriesMax))
      to_visit.push_back(*path + "/../slaves/" + below);
    for (; path->size() > top->size(); path->resize(path->rfind('/'))) {
      if (auto device = usb_device_at(*path)) out.push_back(std::move(*device));
    }
  }
  return out;
}

std::vector<UsbDevice> Sysfs::usb_above_node(const std::string& path) const {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return {};
  const bool block = S_ISBLK(info.st_mode);
  if (!block && !S_ISCHR(info.st_mode)) return {};
  return usb_above(root_ + (block ? "/dev/block/" : "/dev/char/") + std::to_string(major(info.st_rdev)) + ":" +
                   std::to_string(minor(info.st_rdev)));
}

std::vector<UsbDevice> Sysfs::usb_above_scsi_host(std::uint32_t host) const {
  return usb_above(root_ + "/class/scsi_host/host" + std::to_string(host));
}

std::vector<UsbDevice> Sysfs::usb_above_interface(const std::string& name) const {
  if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') return {};
  return usb_above(root_ + "/class/net/" + name);
}

std::vector<UsbDevice> Sysfs::usb_below_pci(const std::string& address) const {
  std::vector<UsbDevice> out;
  const auto controller = real_path(root_ + "/bus/pci/devices/" + address);
  if (!controller) return out;
  for (auto& device : usb_devices()) {
    if (device.path.rfind(*controller + "/", 0) == 0) out.push_back(std::move(device));
  }
  return out;
}

}  // namespace usblease::usb
