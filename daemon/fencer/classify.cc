#include "daemon/fencer/classify.h"

#include <map>

#include "common/boottime.h"
#include "common/log.h"
#include "common/managed.h"
#include "plugin/bpf/loader.h"

namespace usblease::fencer {
namespace {

using fence::DeviceNumber;

struct Plugged {
  std::string port;
  std::string name;  // "": free
};

Result<std::map<DeviceNumber, Plugged>> look(const Config& config, const usb::Sysfs& sysfs) {
  const usb::Managed managed(config);
  std::map<DeviceNumber, Plugged> out;
  for (const auto& device : sysfs.usb_devices()) {
    const auto number = fence::device_number(device.bus, device.device);
    if (!number) continue;  // no kernel has such a one
    out[*number] = {device.name, managed.name_of(device)};
  }
  // There is a root hub at least: without any, it is sysfs that is not there, and nothing may be forgotten.
  if (out.empty())
    return fail(ErrorCode::kUnavailable, "no USB device at all is in sysfs; is the kernel's USB loaded?");
  return out;
}

// Without a lease it is bound to no driver either. Not only when it is new: udev tells of a device before the kernel
// has bound it, and then again.
void keep_unbound(const Plugged& plugged, const Binding& binding) {
  if (!binding.is_bound(plugged.port)) return;
  if (const auto unbound = binding.unbind(plugged.port); !unbound)
    log::error(unbound.error().message, {{"DEVICE", plugged.name}});
}

// Managed devices in the fence's table, and whether their lease lives.
Result<std::map<DeviceNumber, bool>> read_table(const fence::KernelFence& fence) {
  const auto table = fence.managed();
  if (!table) return tl::unexpected(table.error());
  std::map<DeviceNumber, bool> out;
  for (const auto& managed : *table) out[managed.device] = managed.grant.deadline_ns > boottime_now_ns();
  return out;
}

// Devices that left, and those that no rule names any more: the host gets these back.
Result<void> forget_others(fence::KernelFence* fence, const std::map<DeviceNumber, Plugged>& plugged,
                           const std::map<DeviceNumber, bool>& table, const Binding& binding) {
  for (const auto& [number, live] : table) {
    const auto found = plugged.find(number);
    const bool gone = found == plugged.end();
    if (!gone && (live || !found->second.name.empty())) continue;
    if (auto done = fence->forget(number); !done) return done;
    if (gone) continue;
    if (const auto bound = binding.bind(found->second.port); !bound) log::error(bound.error().message);
  }
  const auto free_now = fence->free_devices();
  if (!free_now) return tl::unexpected(free_now.error());
  for (const DeviceNumber number : *free_now) {
    if (plugged.contains(number)) continue;
    if (auto done = fence->forget(number); !done) return done;
  }
  return {};
}

}  // namespace

Result<void> classify(fence::KernelFence* fence, const Config& config, const usb::Sysfs& sysfs,
                      const Binding& binding) {
  const auto whole = fence->lock_classification();
  if (!whole) return tl::unexpected(whole.error());
  const auto plugged = look(config, sysfs);
  if (!plugged) return tl::unexpected(plugged.error());
  const auto table = read_table(*fence);
  if (!table) return tl::unexpected(table.error());
  if (auto done = forget_others(fence, *plugged, *table, binding); !done) return done;
  for (const auto& [number, device] : *plugged) {
    const auto known = table->find(number);
    const bool live = known != table->end() && known->second;
    if (device.name.empty()) {
      if (live) continue;
      if (auto done = fence->set_free(number); !done) return done;
      continue;
    }
    if (known == table->end()) log::info("managed from now on: refused without a lease", {{"DEVICE", device.name}});
    if (auto done = fence->manage(number); !done) return done;
    if (!live) keep_unbound(device, binding);
  }
  return fence->refuse_unknown(true);
}

Result<void> classify_host() {
  const auto config = load_config(kDefaultConfigPath);
  if (!config) return tl::unexpected(config.error());
  if (!usb::Managed(*config).any_usb()) return {};
  auto fence = fence::load_fence();
  if (!fence) return tl::unexpected(fence.error());
  return classify(&*fence, *config, usb::Sysfs(), Binding());
}

}  // namespace usblease::fencer
