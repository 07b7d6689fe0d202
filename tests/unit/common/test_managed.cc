// Which plugged device is which managed one: by serial, by port, by neither; on trees as sysfs shows them.
#include <map>

#include "common/managed.h"
#include "common/usb_sysfs.h"
#include "tests/unit/common/check_run.h"
#include "tests/unit/hook/hook_testing.h"

using namespace usblease;
using hook::testing::FakeSysfs;

namespace {

// "1-2=a 1-3=-": what each plugged device but root hubs is managed as.
std::string names(const std::string& config_text, const FakeSysfs& tree) {
  const auto config = parse_config(config_text, "x.conf");
  ck_assert_ok(config);
  const usb::Managed managed(*config);
  std::map<std::string, std::string> found;
  for (const auto& device : usb::Sysfs(tree.root()).usb_devices()) {
    if (device.name.rfind("usb", 0) == 0) continue;
    const std::string name = managed.name_of(device);
    found[device.name] = name.empty() ? "-" : name;
  }
  std::string out;
  for (const auto& [port, name] : found) out += (out.empty() ? "" : " ") + port + "=" + name;
  return out;
}

START_TEST(twins_without_serials_are_told_apart_by_port) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0001");
  tree.add_usb("pci0/usb1/1-3/1-3.4", 1, 5, "0529", "0001");
  tree.add_usb("pci0/usb1/1-5", 1, 6, "0529", "0001");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001\nport=1-2\n[device b]\nusb=0529:0001\nport=1-3.4\n", tree),
                    "1-2=a 1-3.4=b 1-5=-");
}
END_TEST

START_TEST(port_alone_is_not_enough) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0002");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001\nport=1-2\n", tree), "1-2=-");
}
END_TEST

START_TEST(serial_goes_with_the_device) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0001", "B");
  tree.add_usb("pci0/usb1/1-3", 1, 5, "0529", "0001", "A");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001:A\n[device b]\nusb=0529:0001:B\n", tree), "1-2=b 1-3=a");
  // Both said: both must fit.
  ck_assert_text_eq(names("[device a]\nusb=0529:0001:A\nport=1-2\n", tree), "1-2=- 1-3=-");
}
END_TEST

START_TEST(serial_that_is_a_prefix_is_another) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0001", "AB");
  tree.add_usb("pci0/usb1/1-3", 1, 5, "0529", "0001");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001:A\n", tree), "1-2=- 1-3=-");
}
END_TEST

// One socket has a port on the bus of each speed, and which one is used depends on the device.
START_TEST(both_speeds_of_a_socket_are_one_port) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb2/2-1", 2, 3, "0529", "0001");
  tree.add("pci0/usb2/2-0:1.0/usb2-port1");
  tree.add("pci0/usb1/1-0:1.0/usb1-port4");
  tree.link("devices/pci0/usb2/2-1/port", "pci0/usb2/2-0:1.0/usb2-port1");
  tree.link("devices/pci0/usb2/2-0:1.0/usb2-port1/peer", "pci0/usb1/1-0:1.0/usb1-port4");
  tree.add_usb("pci0/usb2/2-2/2-2.3", 2, 4, "0529", "0001");
  tree.add("pci0/usb2/2-2/2-2:1.0/2-2-port3");
  tree.add("pci0/usb1/1-5/1-5:1.0/1-5-port3");
  tree.link("devices/pci0/usb2/2-2/2-2.3/port", "pci0/usb2/2-2/2-2:1.0/2-2-port3");
  tree.link("devices/pci0/usb2/2-2/2-2:1.0/2-2-port3/peer", "pci0/usb1/1-5/1-5:1.0/1-5-port3");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001\nport=1-4\n[device b]\nusb=0529:0001\nport=1-5.3\n", tree),
                    "2-1=a 2-2.3=b");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001\nport=2-1\n[device b]\nusb=0529:0001\nport=2-2.3\n", tree),
                    "2-1=a 2-2.3=b");
}
END_TEST

START_TEST(hubs_are_never_managed) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0001");
  tree.write("devices/pci0/usb1/1-2/bDeviceClass", "09\n");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001\n", tree), "1-2=-");
}
END_TEST

START_TEST(hostile_serials_match_nothing_else) {
  FakeSysfs tree;
  tree.add_usb("pci0/usb1/1-2", 1, 4, "0529", "0001", "A\nB");
  tree.add_usb("pci0/usb1/1-3", 1, 5, "0529", "0001", std::string(5000, 'A'));
  tree.add_usb("pci0/usb1/1-4", 1, 6, "0529", "0001", "\x1b[31m\xff");
  ck_assert_text_eq(names("[device a]\nusb=0529:0001:A\n", tree), "1-2=- 1-3=- 1-4=-");
  for (const auto& device : usb::Sysfs(tree.root()).usb_devices()) ck_assert(device.serial.size() <= 256);
}
END_TEST

}  // namespace

int main() {
  return test::run_suite(
      "managed", {twins_without_serials_are_told_apart_by_port, port_alone_is_not_enough, serial_goes_with_the_device,
                  serial_that_is_a_prefix_is_another, both_speeds_of_a_socket_are_one_port, hubs_are_never_managed,
                  hostile_serials_match_nothing_else});
}
