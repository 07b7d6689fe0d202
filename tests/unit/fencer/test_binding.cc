// Which attributes are written for which device; what the kernel does then is seen in the testbed.
#include <unistd.h>

#include "daemon/fencer/binding.h"
#include "tests/lib/check_suite.h"
#include "tests/unit/fencer/tree.h"

using namespace usblease;
using fencer::Binding;

namespace {

constexpr fence::DeviceNumber kDevice = (189U << 20U) | 4;

// A device at 1-2.4 and the root hub, as sysfs shows them.
class Sysfs : public test::Tree {
 public:
  Sysfs() {
    put("bus/usb/drivers/usb/bind", "");
    put("bus/usb/drivers/usb/unbind", "");
    put("devices/pci0/usb1/1-2/1-2.4/authorized", "0");
    link("bus/usb/devices/1-2.4", "../../../devices/pci0/usb1/1-2/1-2.4");
    link("dev/char/189:4", "../../devices/pci0/usb1/1-2/1-2.4");
    link("dev/char/189:0", "../../devices/pci0/usb1");
  }
  void set_bound() const { link("devices/pci0/usb1/1-2/1-2.4/driver", "../../../../../bus/usb/drivers/usb"); }
};

START_TEST(port_of_a_device) {
  const Sysfs sysfs;
  const auto port = Binding(sysfs.root()).port_of(kDevice);
  ck_assert_ok(port);
  ck_assert_text_eq(*port, "1-2.4");
}
END_TEST

START_TEST(absent_device_and_root_hub) {
  const Sysfs sysfs;
  ck_assert_fails(Binding(sysfs.root()).port_of(kDevice + 1), ErrorCode::kNotFound, "189:5 is plugged in");
  ck_assert_fails(Binding(sysfs.root()).port_of(189U << 20U), ErrorCode::kRefused, "usb1 is a root hub");
}
END_TEST

START_TEST(unbinding_names_the_port) {
  const Sysfs sysfs;
  sysfs.set_bound();
  ck_assert(Binding(sysfs.root()).is_bound("1-2.4"));
  ck_assert_ok(Binding(sysfs.root()).unbind("1-2.4"));
  ck_assert_text_eq(sysfs.text("bus/usb/drivers/usb/unbind"), "1-2.4");
}
END_TEST

START_TEST(binding_authorises) {
  const Sysfs sysfs;
  ck_assert(!Binding(sysfs.root()).is_bound("1-2.4"));
  ck_assert_ok(Binding(sysfs.root()).bind("1-2.4"));
  ck_assert_text_eq(sysfs.text("bus/usb/drivers/usb/bind"), "1-2.4");
  ck_assert_text_eq(sysfs.text("bus/usb/devices/1-2.4/authorized"), "1");
}
END_TEST

START_TEST(bound_device_is_authorised_only) {
  const Sysfs sysfs;
  sysfs.set_bound();
  ck_assert_ok(Binding(sysfs.root()).bind("1-2.4"));
  ck_assert_text_eq(sysfs.text("bus/usb/drivers/usb/bind"), "");
  ck_assert_text_eq(sysfs.text("bus/usb/devices/1-2.4/authorized"), "1");
}
END_TEST

// With the bus's setting, an interface of the device, and one of another device that somebody has forbidden.
class Bus : public Sysfs {
 public:
  explicit Bus(const std::string& setting) {
    put("devices/pci0/usb1/interface_authorized_default", setting);
    put("devices/pci0/usb1/1-2/1-2.4/1-2.4:1.0/authorized", "0");
    put("devices/pci0/usb1/1-3/1-3:1.0/authorized", "0");
    put("bus/usb/drivers_probe", "");
    link("bus/usb/devices/usb1", "../../../devices/pci0/usb1");
    link("bus/usb/devices/1-2.4:1.0", "../../../devices/pci0/usb1/1-2/1-2.4/1-2.4:1.0");
    link("bus/usb/devices/1-3:1.0", "../../../devices/pci0/usb1/1-3/1-3:1.0");
    put("run/keep", "");
  }
  [[nodiscard]] std::string run() const { return root() + "/run"; }
  [[nodiscard]] std::string setting() const { return text("devices/pci0/usb1/interface_authorized_default"); }
};

START_TEST(bound_without_drivers_the_bus_is_as_before) {
  const Bus bus("1");
  ck_assert_ok(Binding(bus.root()).bind_without_drivers("1-2.4", bus.run()));
  ck_assert_text_eq(bus.text("bus/usb/drivers/usb/bind"), "1-2.4");
  ck_assert_text_eq(bus.setting(), "1");
  ck_assert_text_eq(bus.text("bus/usb/devices/1-2.4:1.0/authorized"), "1");
  ck_assert_text_eq(bus.text("bus/usb/devices/1-3:1.0/authorized"), "0");  // not our doing
  ck_assert_text_eq(bus.text("bus/usb/drivers_probe"), "");
  ck_assert_int_ne(access((bus.run() + "/interfaces-held-back-usb1").c_str(), F_OK), 0);
}
END_TEST

START_TEST(bus_that_authorises_nothing_stays_so) {
  const Bus bus("0");
  ck_assert_ok(Binding(bus.root()).bind_without_drivers("1-2.4", bus.run()));
  ck_assert_text_eq(bus.setting(), "0");
  ck_assert_text_eq(bus.text("bus/usb/devices/1-2.4:1.0/authorized"), "1");
}
END_TEST

START_TEST(what_a_dead_process_had_set_is_put_back) {
  const Bus bus("0");
  bus.put("run/interfaces-held-back-usb1", "");
  Binding(bus.root()).restore_defaults(bus.run());
  ck_assert_text_eq(bus.setting(), "1");
  ck_assert_int_ne(access((bus.run() + "/interfaces-held-back-usb1").c_str(), F_OK), 0);
  bus.put("devices/pci0/usb1/interface_authorized_default", "0");  // the administrator's
  Binding(bus.root()).restore_defaults(bus.run());
  ck_assert_text_eq(bus.setting(), "0");
}
END_TEST

START_TEST(without_a_place_for_the_marker_nothing_is_bound) {
  const Bus bus("1");
  ck_assert_fails(Binding(bus.root()).bind_without_drivers("1-2.4", bus.root() + "/none"), ErrorCode::kInternal,
                  "noting the setting of USB bus 1");
  ck_assert_text_eq(bus.text("bus/usb/drivers/usb/bind"), "");
  ck_assert_text_eq(bus.setting(), "1");
}
END_TEST

START_TEST(kernel_without_usb) {
  const test::Tree empty;
  ck_assert_fails(Binding(empty.root()).unbind("1-2"), ErrorCode::kInternal, "unbinding the USB device at 1-2");
  ck_assert_fails(Binding(empty.root()).bind("1-2"), ErrorCode::kInternal, "binding the USB device at 1-2");
}
END_TEST

}  // namespace

int main() {
  return test::run_suite("binding",
                         {port_of_a_device, absent_device_and_root_hub, unbinding_names_the_port, binding_authorises,
                          bound_device_is_authorised_only, bound_without_drivers_the_bus_is_as_before,
                          bus_that_authorises_nothing_stays_so, what_a_dead_process_had_set_is_put_back,
                          without_a_place_for_the_marker_nothing_is_bound, kernel_without_usb});
}
