#include "daemon/host/usb_kernel_fence.h"

#include <map>
#include <utility>

#ifdef USBLEASE_KERNEL_FENCE
#include "plugin/bpf/kernel_fence.h"
#endif

namespace usblease::host::usb_kernel_fence {

#ifdef USBLEASE_KERNEL_FENCE
namespace {

struct Opened {
  fence::KernelFence fence;
  fence::DeviceNumber number;
};

Result<Opened> open(const UsbPlace& place) {
  const auto number = fence::device_number(place.bus, place.device);
  if (!number) return tl::unexpected(number.error());
  auto fence = fence::KernelFence::open();
  if (!fence) return fail(ErrorCode::kUnavailable, fence.error().message);
  return Opened{std::move(*fence), *number};
}

}  // namespace

Result<void> arm(const UsbPlace& place, const UsbLease& lease, const UsbHolder& holder) {
  auto opened = open(place);
  if (!opened) return tl::unexpected(opened.error());
  // It may have appeared a moment ago, or udev may not run our rule.
  if (auto managed = opened->fence.manage(opened->number); !managed) return managed;
  fence::Grant grant;
  grant.token = lease.token;
  grant.deadline_ns = lease.deadline_ns;
  grant.holder.pid = static_cast<std::uint32_t>(holder.pid);
  grant.holder.start_ticks = holder.start_ticks;
  return opened->fence.arm(opened->number, grant);
}

Result<void> extend(const UsbPlace& place, const UsbLease& lease) {
  auto opened = open(place);
  if (!opened) return tl::unexpected(opened.error());
  return opened->fence.extend(opened->number, lease.token, lease.deadline_ns);
}

Result<void> disarm(const UsbPlace& place, std::uint64_t token) {
  auto opened = open(place);
  if (!opened) return tl::unexpected(opened.error());
  auto disarmed = opened->fence.disarm(opened->number, token);
  // Not in the table: it has left the bus.
  if (!disarmed && disarmed.error().code == ErrorCode::kNotFound) return {};
  return disarmed;
}

Result<UsbLease> look(const UsbPlace& place) {
  auto opened = open(place);
  if (!opened) return tl::unexpected(opened.error());
  const auto table = opened->fence.managed();
  if (!table) return tl::unexpected(table.error());
  for (const fence::Managed& managed : *table) {
    if (managed.device == opened->number) return UsbLease{managed.grant.token, managed.grant.deadline_ns};
  }
  return UsbLease{};
}

Result<std::vector<std::uint64_t>> count_refused(const std::vector<UsbPlace>& places) {
  const auto fence = fence::KernelFence::open();
  if (!fence) return fail(ErrorCode::kUnavailable, fence.error().message);
  const auto table = fence->managed();
  if (!table) return tl::unexpected(table.error());
  std::map<fence::DeviceNumber, std::uint64_t> refused;
  for (const fence::Managed& managed : *table) refused[managed.device] = managed.refused;
  std::vector<std::uint64_t> out;
  for (const UsbPlace& place : places) {
    const auto number = fence::device_number(place.bus, place.device);
    out.push_back(number ? refused[*number] : 0);
  }
  return out;
}

#else
namespace {

tl::unexpected<Error> not_built() {
  return fail(ErrorCode::kUnavailable, "this usbleased was built without the fence in the kernel (-Dkernel_fence)");
}

}  // namespace

Result<void> arm(const UsbPlace& /*place*/, const UsbLease& /*lease*/, const UsbHolder& /*holder*/) {
  return not_built();
}
Result<void> extend(const UsbPlace& /*place*/, const UsbLease& /*lease*/) { return not_built(); }
Result<void> disarm(const UsbPlace& /*place*/, std::uint64_t /*token*/) { return not_built(); }
Result<UsbLease> look(const UsbPlace& /*place*/) { return not_built(); }
Result<std::vector<std::uint64_t>> count_refused(const std::vector<UsbPlace>& /*places*/) { return not_built(); }
#endif

}  // namespace usblease::host::usb_kernel_fence
