// Which attributes are written for which device; what the kernel does then is seen in the testbed.
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

START_TEST(kernel_without_usb) {
  const test::Tree empty;
  ck_assert_fails(Binding(empty.root()).unbind("1-2"), ErrorCode::kInternal, "unbinding the USB device at 1-2");
  ck_assert_fails(Binding(empty.root()).bind("1-2"), ErrorCode::kInternal, "binding the USB device at 1-2");
}
END_TEST

}  // namespace

int main() {
  return test::run_suite("binding", {port_of_a_device, absent_device_and_root_hub, unbinding_names_the_port,
                                     binding_authorises, bound_device_is_authorised_only, kernel_without_usb});
}
