#include "daemon/fencer/binding.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "common/fd.h"

namespace usblease::fencer {
namespace {

constexpr const char* kDriver = "/bus/usb/drivers/usb";
constexpr const char* kDevices = "/bus/usb/devices/";

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

}  // namespace usblease::fencer
