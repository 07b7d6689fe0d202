#include "daemon/host/usb_refusals.h"

#include <utility>
#include <vector>

#include "common/log.h"

namespace usblease::host {
UsbRefusals::UsbRefusals(UsbGate& gate, cluster::CoordinatorLink& link, std::string host_id, CalmDevices calm,
                         std::uint64_t look_ns)
    : gate_(gate), link_(link), host_id_(std::move(host_id)), calm_(std::move(calm)), look_ns_(look_ns) {
  look_soon();
}

void UsbRefusals::look_soon() {
  timer_ = run_after(look_ns_, [this] { look(); });
}

void UsbRefusals::look() {
  const auto before = calm_();
  if (before.empty()) {
    seen_.clear();
    return look_soon();
  }
  std::vector<UsbPlace> places;
  places.reserve(before.size());
  for (const auto& [device, calm] : before) places.push_back(calm.place);
  gate_.count_refused(places, [this, alive = std::weak_ptr(alive_), before](const auto& counts) {
    if (alive.expired()) return;
    look_soon();
    if (!counts) return;  // no fence here: `usblease host info` says so
    // It may have been touched while it was looked at.
    const auto after = calm_();
    std::map<std::string, Seen> now;
    auto count = counts->begin();
    for (const auto& [device, calm] : before) {
      const Seen seen{calm, *count++};
      const auto still = after.find(device);
      if (still == after.end() || still->second != calm) continue;
      take(device, seen);
      now[device] = seen;
    }
    seen_ = std::move(now);
  });
}

void UsbRefusals::take(const std::string& device, const Seen& seen) {
  const auto earlier = seen_.find(device);
  if (earlier == seen_.end() || earlier->second.calm != seen.calm || earlier->second.refused >= seen.refused) return;
  command::Command command;
  command.mutable_note_refusals()->set_device(device);
  command.mutable_note_refusals()->set_host_id(host_id_);
  command.mutable_note_refusals()->set_calls(seen.refused - earlier->second.refused);
  link_.submit(std::move(command), [device](const command::Reply& reply) {
    if (reply.status().code() == command::CODE_OK) return;
    log::warning("calls that the kernel refused are not on record",
                 {{"DEVICE", device}, {"ERROR", reply.status().message()}});
  });
}

}  // namespace usblease::host
