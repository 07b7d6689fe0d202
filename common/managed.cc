#include "common/managed.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>

namespace usblease::usb {
namespace {

std::string describe(const UsbSelector& selector) {
  std::array<char, 64> out{};
  if (selector.vendor && selector.product) {
    std::snprintf(out.data(), out.size(), "%04x:%04x", *selector.vendor, *selector.product);
  } else {
    std::snprintf(out.data(), out.size(), "bus %u", selector.bus.value_or(0));
  }
  return out.data();
}

bool has_address(const UsbSelector& selector) { return selector.bus && (selector.device || !selector.port.empty()); }

bool at_address(const UsbSelector& selector, const UsbDevice& device) {
  if (device.bus != *selector.bus) return false;
  return selector.device ? device.device == *selector.device
                         : device.name == std::to_string(device.bus) + "-" + selector.port;
}

std::string join(const std::set<std::string>& names) {
  std::string out;
  for (const auto& name : names) {
    if (!out.empty()) out += " and ";
    out += name.empty() ? "one that is not managed" : name;
  }
  return out;
}

tl::unexpected<Error> ambiguous(const UsbSelector& selector, const std::set<std::string>& names) {
  return fail(ErrorCode::kRefused, "its <hostdev> " + describe(selector) + " matches several devices: " + join(names) +
                                       "; declare the one that is meant with `usblease assign GUEST DEVICE`, or give "
                                       "its <address> in the <source>");
}

}  // namespace

bool Managed::any_usb() const {
  return std::any_of(config_.devices.begin(), config_.devices.end(), [](const auto& d) { return d.usb.has_value(); });
}

std::string Managed::name_of(const UsbDevice& device) const {
  if (device.hub) return "";
  std::string name;
  int best = -1;
  for (const auto& d : config_.devices) {
    if (!d.usb || d.usb->vendor != device.vendor || d.usb->product != device.product) continue;
    if (!d.usb->serial.empty() && d.usb->serial != device.serial) continue;
    if (!d.port.empty() && d.port != device.name && d.port != device.peer_port) continue;
    const int said = (d.usb->serial.empty() ? 0 : 2) + (d.port.empty() ? 0 : 1);
    if (said > best) name = d.name;
    best = std::max(best, said);
  }
  return name;
}

Result<std::string> Managed::find(const UsbSelector& selector, const std::vector<UsbDevice>& plugged) const {
  const bool by_id = selector.vendor && selector.product;
  if (!by_id && !has_address(selector)) {
    return fail(ErrorCode::kRefused,
                "its USB <hostdev> names its device in a way that usblease does not know, so it may be a managed one; "
                "use <vendor> and <product>, or <address bus= device=>");
  }
  std::set<std::string> names;
  std::set<std::string> names_by_id;
  for (const auto& device : plugged) {
    const bool same_id = by_id && device.vendor == *selector.vendor && device.product == *selector.product;
    if (same_id) names_by_id.insert(name_of(device));
    if (has_address(selector) && at_address(selector, device) && (same_id || !by_id)) names.insert(name_of(device));
  }
  // An address that is out of date, in XML with both: libvirt looks for the vendor and the product again.
  if (names.empty()) names = names_by_id;
  if (names.size() > 1) return ambiguous(selector, names);
  if (names.size() == 1) return *names.begin();
  return by_id ? find_absent(selector) : Result<std::string>("");
}

// Nothing like it is plugged in here. libvirt will say so itself, unless the guest may start without it; the daemon
// must know all the same.
Result<std::string> Managed::find_absent(const UsbSelector& selector) const {
  std::set<std::string> names;
  for (const auto& d : config_.devices) {
    if (d.usb && d.usb->vendor == *selector.vendor && d.usb->product == *selector.product) names.insert(d.name);
  }
  if (names.size() > 1) return ambiguous(selector, names);
  return names.empty() ? std::string() : *names.begin();
}

}  // namespace usblease::usb
