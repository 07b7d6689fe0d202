// What the tests of the hook share: a directory that goes away, and a sysfs tree in it.
#pragma once

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/lib/check_suite.h"

namespace usblease::hook::testing {

inline constexpr const char* kUuid = "11111111-2222-3333-4444-555555555555";
inline constexpr const char* kOtherUuid = "99999999-2222-3333-4444-555555555555";

class TempDir {
 public:
  TempDir() {
    std::string name = "/tmp/uh-XXXXXX";  // 14 characters: all that run_dir= may have
    ck_assert_ptr_nonnull(mkdtemp(name.data()));
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { std::filesystem::remove_all(path_); }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string at(const std::string& name) const { return path_ + "/" + name; }

  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(at(name)).parent_path());
    std::ofstream(at(name)) << text;
  }
  void link(const std::string& name, const std::string& target) const {
    std::filesystem::create_directories(std::filesystem::path(at(name)).parent_path());
    std::filesystem::create_symlink(target, at(name));
  }
  void make(const std::string& name) const { std::filesystem::create_directories(at(name)); }

 private:
  std::string path_;
};

// sysfs as the kernel lays it out: devices/…, and links to there from bus/, class/ and dev/.
class FakeSysfs {
 public:
  [[nodiscard]] const std::string& root() const { return dir_.path(); }

  // `path` below devices/, its last part is the device's name: "pci0000:00/0000:00:14.0/usb1/1-2".
  void add_usb(const std::string& path, int bus, int device, const std::string& vendor, const std::string& product,
               const std::string& serial = "") {
    const std::string full = "devices/" + path + "/";
    dir_.write(full + "busnum", std::to_string(bus) + "\n");
    dir_.write(full + "devnum", std::to_string(device) + "\n");
    dir_.write(full + "idVendor", vendor + "\n");
    dir_.write(full + "idProduct", product + "\n");
    if (!serial.empty()) dir_.write(full + "serial", serial + "\n");
    link("bus/usb/devices/" + path.substr(path.rfind('/') + 1), path);
  }
  void write(const std::string& name, const std::string& text) const { dir_.write(name, text); }
  // Something below a device: an interface, a tty, a disk.
  void add(const std::string& path) { dir_.make("devices/" + path); }
  // A link from anywhere in the tree to devices/PATH.
  void link(const std::string& from, const std::string& path) { dir_.link(from, dir_.at("devices/" + path)); }

 private:
  TempDir dir_;
};

// What the tests plug in: root hub, dongle A1 and a mouse on one controller; on a second one nothing but its hub.
inline void plug_usual_devices(FakeSysfs& sysfs) {
  const std::string controller = "pci0000:00/0000:00:14.0";
  sysfs.add_usb(controller + "/usb1", 1, 1, "1d6b", "0002");
  sysfs.add_usb(controller + "/usb1/1-2", 1, 4, "0529", "0001", "A1");
  sysfs.add_usb(controller + "/usb1/1-3", 1, 5, "046d", "c077");
  sysfs.add(controller + "/usb1/1-2/1-2:1.0");
  sysfs.link("bus/usb/devices/1-2:1.0", controller + "/usb1/1-2/1-2:1.0");
  sysfs.link("bus/pci/devices/0000:00:14.0", controller);
  sysfs.add_usb("pci0000:00/0000:00:1a.0/usb2", 2, 1, "1d6b", "0003");
  sysfs.link("bus/pci/devices/0000:00:1a.0", "pci0000:00/0000:00:1a.0");
}

inline std::string domain_xml(const std::string& devices, const std::string& metadata = "",
                              const std::string& head = "<domain type='qemu' id='7'>") {
  std::string xml = head + "\n  <name>vm</name>\n  <uuid>" + kUuid + "</uuid>\n";
  if (!metadata.empty()) xml += "  <metadata>\n    " + metadata + "\n  </metadata>\n";
  return xml + "  <devices>\n    " + devices + "\n  </devices>\n</domain>\n";
}

inline std::string our_metadata(const std::string& inner) {
  return "<usblease:devices xmlns:usblease='urn:usblease:domain:1'>" + inner + "</usblease:devices>";
}

inline std::string redirdev(const std::string& path, const std::string& mode = "connect") {
  return "<redirdev bus='usb' type='unix'><source mode='" + mode + "' path='" + path + "'/></redirdev>";
}

inline std::string hostdev_usb(const std::string& source) {
  return "<hostdev mode='subsystem' type='usb' managed='yes'><source>" + source + "</source></hostdev>";
}

}  // namespace usblease::hook::testing
