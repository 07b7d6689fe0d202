#include "daemon/host/usb_bus.h"

#include <gudev/gudev.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/text.h"

namespace usblease::host {
namespace {

// One device brings a dozen events: itself, and each interface, added and bound.
constexpr std::uint64_t kTogetherNs = 10'000'000;

std::string place_of(const usb::UsbDevice& device) {
  std::array<char, 128> ids{};
  std::snprintf(ids.data(), ids.size(), " (bus %u, device %u, %04x:%04x", device.bus, device.device, device.vendor,
                device.product);
  const std::string serial = device.serial.empty() ? "" : ", serial " + escape_text(device.serial);
  return device.name + ids.data() + serial + ")";
}

UsbSighting sighting_of(const std::vector<usb::UsbDevice>& matching) {
  if (matching.empty()) return {std::nullopt, "not plugged in"};
  if (matching.size() == 1) return {matching.front(), "plugged in at " + place_of(matching.front())};
  std::string places;
  for (const auto& device : matching) places += (places.empty() ? "" : ", ") + device.name;
  return {std::nullopt, std::to_string(matching.size()) + " devices match it, at " + places +
                            "; tell them apart by a serial in usb=, or by port="};
}

}  // namespace

void UsbBus::Unref::operator()(GUdevClient* client) const { g_object_unref(client); }

UsbBus::UsbBus(const Config& config, std::string sysfs) : config_(config), managed_(config), sysfs_(std::move(sysfs)) {}

UsbBus::~UsbBus() {
  if (udev_ != nullptr) g_signal_handlers_disconnect_by_data(udev_.get(), this);
}

void UsbBus::start(Changed changed) {
  changed_ = std::move(changed);
  // Listening before looking: what comes in between is seen once more.
  static constexpr std::array<const char*, 2> kSubsystems = {"usb", nullptr};
  udev_.reset(g_udev_client_new(kSubsystems.data()));
  const auto on_event = +[](GUdevClient*, const char*, GUdevDevice*, gpointer self) {
    auto* bus = static_cast<UsbBus*>(self);
    if (!bus->soon_) bus->soon_ = run_after(kTogetherNs, [bus] { bus->look(); });
  };
  g_signal_connect(udev_.get(), "uevent", G_CALLBACK(on_event), this);
  look();
}

std::map<std::string, UsbSighting> UsbBus::see() const {
  std::map<std::string, std::vector<usb::UsbDevice>> matching;
  for (const auto& device : config_.devices) {
    if (device.usb) matching[device.name];
  }
  for (auto& device : sysfs_.usb_devices()) {
    const std::string name = managed_.name_of(device);
    if (!name.empty()) matching[name].push_back(std::move(device));
  }
  std::map<std::string, UsbSighting> out;
  for (auto& [name, devices] : matching) {
    std::sort(devices.begin(), devices.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    out[name] = sighting_of(devices);
  }
  return out;
}

void UsbBus::look() {
  soon_.cancel();
  auto now = see();
  std::swap(now, seen_);
  for (const auto& [name, sighting] : std::map<std::string, UsbSighting>(seen_)) {
    const auto before = now.find(name);
    if (before != now.end() && before->second == sighting) continue;
    log::info(sighting.detail, {{"DEVICE", name}});
    changed_(name, sighting);
  }
}

}  // namespace usblease::host
