// What the host's own bus has, on recorded sysfs trees with udev's events (umockdev): plugging, unplugging, replugging
// at once, twins, other ports, and what devices say of themselves.
#include <umockdev.h>

#include <functional>
#include <vector>

#include "common/boottime.h"
#include "common/glib_ptr.h"
#include "daemon/host/usb_bus.h"
#include "tests/lib/check_suite.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

constexpr std::uint64_t kWaitNs = 10'000'000'000;
constexpr const char* kRootHub =
    "P: /devices/pci0000:00/0000:00:14.0/usb1\nN: bus/usb/001/001\n"
    "E: SUBSYSTEM=usb\nE: DEVTYPE=usb_device\n"
    "A: busnum=1\nA: devnum=1\nA: idVendor=1d6b\nA: idProduct=0002\nA: bDeviceClass=09\n";

std::string path_of(const std::string& port) { return "/sys/devices/pci0000:00/0000:00:14.0/usb1/" + port; }

std::string device(const std::string& port, int number, const std::string& ids = "0529:0001",
                   const std::string& serial = "", const std::string& device_class = "00") {
  char node[32];
  std::snprintf(node, sizeof node, "bus/usb/001/%03d", number);
  std::string out = "P: /devices/pci0000:00/0000:00:14.0/usb1/" + port + "\nN: " + node + "\n";
  out += "E: SUBSYSTEM=usb\nE: DEVTYPE=usb_device\nA: busnum=1\nA: devnum=" + std::to_string(number) +
         "\nA: idVendor=" + ids.substr(0, 4) + "\nA: idProduct=" + ids.substr(5) + "\nA: bDeviceClass=" + device_class +
         "\n";
  if (!serial.empty()) out += "A: serial=" + serial + "\n";
  return out;
}

class Bus {
 public:
  explicit Bus(const std::string& config_text) : testbed_(umockdev_testbed_new()) {
    const auto config = parse_config(config_text, "x.conf");
    ck_assert_ok(config);
    config_ = *config;
    plug(kRootHub);
    bus_ = std::make_unique<host::UsbBus>(config_);
  }

  void start() {
    bus_->start(
        [this](const std::string& name, const host::UsbSighting& sighting) { told_.emplace_back(name, sighting); });
  }
  void plug(const std::string& text) {
    GErrorOut error;
    const bool added = umockdev_testbed_add_from_string(testbed_.get(), text.c_str(), error.out()) != FALSE;
    ck_assert_msg(added, "%s", error ? error.get()->message : "");
  }
  // The device is gone, and udev says so.
  void unplug(const std::string& port) {
    umockdev_testbed_uevent(testbed_.get(), path_of(port).c_str(), "remove");
    umockdev_testbed_remove_device(testbed_.get(), path_of(port).c_str());
  }
  void set(const std::string& port, const char* attribute, const std::string& value) {
    umockdev_testbed_set_attribute(testbed_.get(), path_of(port).c_str(), attribute, value.c_str());
  }
  void event(const std::string& port, const char* action) {
    umockdev_testbed_uevent(testbed_.get(), path_of(port).c_str(), action);
  }

  // Runs the main loop until something more was told; returns what.
  std::pair<std::string, host::UsbSighting> wait_told() {
    const std::uint64_t end_ns = boottime_now_ns() + kWaitNs;
    const auto wake = run_after(kWaitNs, [] {});
    while (read_ == told_.size() && boottime_now_ns() < end_ns) g_main_context_iteration(nullptr, TRUE);
    ck_assert_msg(read_ < told_.size(), "nothing was told");
    return told_[read_++];
  }
  // Looks now, and expects to be told nothing.
  void expect_silence() {
    bus_->look();
    ck_assert_msg(read_ == told_.size(), "told: %s", told_.back().second.detail.c_str());
  }

 private:
  GPtr<UMockdevTestbed, g_object_unref> testbed_;
  Config config_;
  std::vector<std::pair<std::string, host::UsbSighting>> told_;
  std::size_t read_ = 0;
  std::unique_ptr<host::UsbBus> bus_;
};

void expect(const std::pair<std::string, host::UsbSighting>& told, const std::string& name, const std::string& detail) {
  ck_assert_text_eq(told.first, name);
  ck_assert_text_eq(told.second.detail, detail);
}

START_TEST(told_at_the_beginning) {
  Bus bus("[device a]\nusb=0529:0001\n[device b]\nusb=1050:0030\n[device far]\nendpoint=tcp:h:1\n");
  bus.plug(device("1-2", 4, "0529:0001", "S1"));
  bus.start();
  const auto a = bus.wait_told();
  expect(a, "a", "plugged in at 1-2 (bus 1, device 4, 0529:0001, serial S1)");
  ck_assert(a.second.device && a.second.device->device == 4);
  const auto b = bus.wait_told();
  expect(b, "b", "not plugged in");
  ck_assert(!b.second.device);
  bus.expect_silence();
}
END_TEST

START_TEST(plugged_and_unplugged) {
  Bus bus("[device a]\nusb=0529:0001\n");
  bus.start();
  expect(bus.wait_told(), "a", "not plugged in");
  bus.plug(device("1-2", 4));
  expect(bus.wait_told(), "a", "plugged in at 1-2 (bus 1, device 4, 0529:0001)");
  bus.unplug("1-2");
  expect(bus.wait_told(), "a", "not plugged in");
}
END_TEST

START_TEST(replug_that_was_too_quick_is_another_device_number) {
  Bus bus("[device a]\nusb=0529:0001\n");
  bus.plug(device("1-2", 4));
  bus.start();
  bus.wait_told();
  bus.set("1-2", "devnum", "5");
  bus.event("1-2", "add");
  expect(bus.wait_told(), "a", "plugged in at 1-2 (bus 1, device 5, 0529:0001)");
}
END_TEST

START_TEST(events_that_change_nothing_are_not_passed_on) {
  Bus bus("[device a]\nusb=0529:0001\n");
  bus.plug(device("1-2", 4));
  bus.start();
  bus.wait_told();
  for (const char* action : {"change", "bind", "unbind", "add"}) bus.event("1-2", action);
  bus.plug(device("1-3", 5, "046d:c077"));
  bus.set("1-2", "devnum", "9");
  bus.event("1-2", "change");
  // The first that is told is the one that means something.
  expect(bus.wait_told(), "a", "plugged in at 1-2 (bus 1, device 9, 0529:0001)");
  bus.expect_silence();
}
END_TEST

START_TEST(twins_are_told_apart_or_it_is_said) {
  Bus bus("[device a]\nusb=0529:0001\n");
  bus.plug(device("1-2", 4));
  bus.start();
  bus.wait_told();
  bus.plug(device("1-3", 5));
  const auto told = bus.wait_told();
  ck_assert(!told.second.device);
  ck_assert_msg(told.second.detail.find("2 devices match it, at 1-2, 1-3; tell") == 0, "%s",
                told.second.detail.c_str());
  ck_assert_msg(told.second.detail.find("or by port=") != std::string::npos, "%s", told.second.detail.c_str());
  bus.unplug("1-2");
  expect(bus.wait_told(), "a", "plugged in at 1-3 (bus 1, device 5, 0529:0001)");
}
END_TEST

START_TEST(twins_at_named_ports) {
  Bus bus("[device a]\nusb=0529:0001\nport=1-2\n[device b]\nusb=0529:0001\nport=1-3\n");
  bus.plug(device("1-3", 5));
  bus.plug(device("1-2", 4));
  bus.plug(device("1-4", 6));
  bus.start();
  expect(bus.wait_told(), "a", "plugged in at 1-2 (bus 1, device 4, 0529:0001)");
  expect(bus.wait_told(), "b", "plugged in at 1-3 (bus 1, device 5, 0529:0001)");
  bus.unplug("1-2");
  expect(bus.wait_told(), "a", "not plugged in");
  bus.expect_silence();
}
END_TEST

START_TEST(hubs_are_not_managed) {
  Bus bus("[device a]\nusb=0529:0001\n[device root]\nusb=1d6b:0002\n");
  bus.plug(device("1-2", 4, "0529:0001", "", "09"));
  bus.start();
  expect(bus.wait_told(), "a", "not plugged in");
  expect(bus.wait_told(), "root", "not plugged in");
}
END_TEST

START_TEST(what_a_device_says_is_escaped) {
  Bus bus("[device a]\nusb=0529:0001\n");
  bus.plug(device("1-2", 4));
  bus.set("1-2", "serial", "\x1b[2J\xff evil\nsecond line");
  bus.start();
  expect(bus.wait_told(), "a",
         "plugged in at 1-2 (bus 1, device 4, 0529:0001, serial \\x1B[2J\\xFF evil\\x0Asecond line)");
}
END_TEST

}  // namespace

int main() {
  return test::run_suite(
      "usb bus", {told_at_the_beginning, plugged_and_unplugged, replug_that_was_too_quick_is_another_device_number,
                  events_that_change_nothing_are_not_passed_on, twins_are_told_apart_or_it_is_said,
                  twins_at_named_ports, hubs_are_not_managed, what_a_device_says_is_escaped});
}
