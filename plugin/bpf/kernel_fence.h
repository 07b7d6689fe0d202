// The fence in the kernel, from user space: tells the program of fence.bpf.c who holds what until when. The program is
// in the kernel already (loader.h), and stays there when whoever tells it is gone.
//
//   manage a device: every open and ioctl of its usbfs node is refused
//        → arm: its holder's calls get through until the deadline → extend, … → disarm → arm under a greater token, …
//        → forget: the fence no longer looks at it
//
// Programs, links and maps are pinned in ROOT/vN, N being USBLEASE_FENCE_VERSION. One process at a time writes: each
// call that changes something holds a lock on that directory. An object is for one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "plugin/bpf/device_number.h"
#include "plugin/bpf/holder.h"
#include "plugin/bpf/support.h"

struct usblease_fence_entry;

namespace usblease::fence {

struct Grant {
  std::uint64_t token = 0;
  std::uint64_t deadline_ns = 0;  // CLOCK_BOOTTIME
  Holder holder;
};

// A managed device as the kernel has it. deadline_ns 0: no lease, and `grant.token` was the last one.
struct Managed {
  DeviceNumber device = 0;
  Grant grant;
  std::uint64_t allowed = 0;  // calls since it is managed
  std::uint64_t refused = 0;
  std::uint64_t last_allowed_ns = 0;
  std::uint64_t last_refused_ns = 0;
};

class KernelFence {
 public:
  // The one that is loaded; kNotFound.
  static Result<KernelFence> open(const std::string& root = kPinRoot);

  // From now on nobody gets through without a lease. It is managed already: no-op, a lease stays.
  Result<void> manage(DeviceNumber device);
  // kNotFound: not managed. kRefused: the token is lower than one before, or ended already; the same token again while
  // its lease lives is fine and may name a later deadline or another holder. kBadInput: no holder, token or deadline.
  Result<void> arm(DeviceNumber device, const Grant& grant);
  // A later deadline. kRefused: another token is armed, or it has ended: what has ended does not come back.
  Result<void> extend(DeviceNumber device, std::uint64_t token, std::uint64_t deadline_ns);
  // Ends this token and all before, at once. A later one is armed: no-op.
  Result<void> disarm(DeviceNumber device, std::uint64_t token);
  // For a device that has left the bus. Not managed: no-op.
  Result<void> forget(DeviceNumber device);

  // A device that nobody has classified, as managed or as free, is refused from now on (or is not).
  Result<void> refuse_unknown(bool refuse);
  // It was looked at, and is not managed.
  Result<void> set_free(DeviceNumber device);

  [[nodiscard]] Result<std::vector<Managed>> managed() const;
  [[nodiscard]] Result<std::vector<DeviceNumber>> free_devices() const;

  // Held by who looks at all that is plugged in and then writes what follows, for as long as the descriptor is open.
  [[nodiscard]] Result<UniqueFd> lock_classification() const;

 private:
  KernelFence(std::string root, UniqueFd directory, UniqueFd entries, UniqueFd counts, UniqueFd free_devices,
              UniqueFd settings)
      : root_(std::move(root)),
        directory_(std::move(directory)),
        entries_(std::move(entries)),
        counts_(std::move(counts)),
        free_devices_(std::move(free_devices)),
        settings_(std::move(settings)) {}

  [[nodiscard]] Result<usblease_fence_entry> read(DeviceNumber device) const;
  Result<void> write(const usblease_fence_entry& entry, std::uint64_t flags);

  std::string root_;
  UniqueFd directory_;
  UniqueFd entries_;
  UniqueFd counts_;
  UniqueFd free_devices_;
  UniqueFd settings_;
};

}  // namespace usblease::fence
