#include "daemon/fencer/binding.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <mutex>

#include "common/directory.h"
#include "common/fd.h"
#include "common/log.h"

namespace usblease::fencer {
namespace {

constexpr const char* kDriver = "/bus/usb/drivers/usb";
constexpr const char* kDevices = "/bus/usb/devices/";
constexpr const char* kInterfaceDefault = "/interface_authorized_default";
constexpr const char* kMarker = "interfaces-held-back-usb";
constexpr std::size_t kEntriesMax = 4096;

// 0, or the error's number.
int write_attribute(const std::string& path, const std::string& value) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return errno;
  ssize_t written = 0;
  do {
    written = write(fd.get(), value.data(), value.size());
  } while (written < 0 && errno == EINTR);
  return written < 0 ? errno : 0;
}

// Without its newline; "" when it cannot be read.
std::string read_attribute(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 16> buffer{};
  const ssize_t count = fd ? read(fd.get(), buffer.data(), buffer.size()) : 0;
  std::string value(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  if (!value.empty() && value.back() == '\n') value.pop_back();
  return value;
}

std::string marker_of(const std::string& directory, const std::string& bus) { return directory + "/" + kMarker + bus; }

}  // namespace

Result<std::string> Binding::port_of(fence::DeviceNumber device) const {
  const std::string link = sysfs_ + "/dev/char/" + fence::to_text(device);
  std::array<char, PATH_MAX> target{};
  const ssize_t length = readlink(link.c_str(), target.data(), target.size() - 1);
  if (length < 0) {
    if (errno == ENOENT)
      return fail(ErrorCode::kNotFound, "no USB device " + fence::to_text(device) + " is plugged in");
    return fail_errno(link, errno);
  }
  const std::string path(target.data(), static_cast<std::size_t>(length));
  const std::string name = path.substr(path.rfind('/') + 1);
  if (name.find('-') == std::string::npos) {
    return fail(ErrorCode::kRefused, name + " is a root hub: it is part of the host, and never unbound");
  }
  return name;
}

bool Binding::is_bound(const std::string& port) const {
  return access((sysfs_ + kDevices + port + "/driver").c_str(), F_OK) == 0;
}

Result<void> Binding::unbind(const std::string& port) const {
  // ENODEV: the driver does not have it. As long as an unbinding goes on, the driver has it, and the write waits for
  // the end of that one: so in both cases it is over.
  const int error = write_attribute(sysfs_ + kDriver + "/unbind", port);
  if (error == 0 || error == ENODEV) return {};
  return fail_errno("unbinding the USB device at " + port, error);
}

Result<void> Binding::bind(const std::string& port) const {
  if (!is_bound(port)) {
    const int error = write_attribute(sysfs_ + kDriver + "/bind", port);
    // It was bound meanwhile.
    if (error != 0 && !(error == ENODEV && is_bound(port))) {
      return fail_errno("binding the USB device at " + port, error);
    }
  }
  const int error = write_attribute(sysfs_ + kDevices + port + "/authorized", "1");
  return error == 0 ? Result<void>{} : fail_errno("authorising the USB device at " + port, error);
}

// The interfaces on this bus that no driver may have, "1-2.4:1.0".
std::set<std::string> Binding::unauthorised(const std::string& bus) const {
  std::set<std::string> out;
  for (const std::string& name : list_names(sysfs_ + kDevices, kEntriesMax)) {
    if (name.rfind(bus + "-", 0) != 0 || name.find(':') == std::string::npos) continue;
    if (read_attribute(sysfs_ + kDevices + name + "/authorized") == "0") out.insert(name);
  }
  return out;
}

void Binding::authorise(const std::string& interface, bool probe) const {
  if (const int error = write_attribute(sysfs_ + kDevices + interface + "/authorized", "1"); error != 0) {
    // It may have left the bus meanwhile.
    return log::warning("authorising USB interface " + interface + ": " + strerror(error));
  }
  if (probe) write_attribute(sysfs_ + "/bus/usb/drivers_probe", interface);
}

Result<void> Binding::bind_without_drivers(const std::string& port, const std::string& marker_directory) const {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const std::string bus = port.substr(0, port.find('-'));
  const std::string setting = interface_default(bus);
  const std::string before = read_attribute(setting);
  const std::set<std::string> were = unauthorised(bus);
  const bool change = before == "1";
  if (change) {
    const UniqueFd marker(open(marker_of(marker_directory, bus).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    if (!marker) return fail_errno("noting the setting of USB bus " + bus + " in " + marker_directory, errno);
    if (const int error = write_attribute(setting, "0"); error != 0) return fail_errno(setting, error);
  }
  auto bound = bind(port);
  if (change) {
    write_attribute(setting, before);
    unlink(marker_of(marker_directory, bus).c_str());
  }
  const std::string own = port + ":";
  for (const std::string& interface : unauthorised(bus)) {
    const bool ours = interface.rfind(own, 0) == 0;
    if (ours || !were.contains(interface)) authorise(interface, !ours);
  }
  return bound;
}

std::string Binding::interface_default(const std::string& bus) const {
  return sysfs_ + kDevices + "usb" + bus + kInterfaceDefault;
}

void Binding::restore_defaults(const std::string& marker_directory) const {
  for (const std::string& name : list_names(marker_directory, kEntriesMax)) {
    if (name.rfind(kMarker, 0) != 0) continue;
    const std::string bus = name.substr(std::strlen(kMarker));
    write_attribute(interface_default(bus), "1");
    unlink(marker_of(marker_directory, bus).c_str());
  }
}

}  // namespace usblease::fencer
