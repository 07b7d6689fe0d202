#include "daemon/api/request_context.h"

#include <algorithm>

#include "daemon/lease/keys.h"

namespace usblease::api {

ServerFrame ok_frame() {
  ServerFrame frame;
  frame.mutable_status()->set_code(command::CODE_OK);
  return frame;
}

void add_counts(const lease::State& state, StatusReply& reply) {
  reply.set_epoch(state.meta.epoch());
  reply.set_behind(state.meta.behind());
  const auto locks =
      std::count_if(state.devices.begin(), state.devices.end(), [](const auto& d) { return lease::is_lock(d.first); });
  reply.set_devices(static_cast<std::uint32_t>(state.devices.size()) - static_cast<std::uint32_t>(locks));
  reply.set_requests(static_cast<std::uint32_t>(state.requests.size()));
  reply.set_hosts(static_cast<std::uint32_t>(state.hosts.size()));
  const auto leases =
      std::count_if(state.devices.begin(), state.devices.end(), [](const auto& d) { return d.second.has_lease(); });
  reply.set_leases(static_cast<std::uint32_t>(leases));
}

}  // namespace usblease::api
