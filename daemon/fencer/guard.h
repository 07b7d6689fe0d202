// The fencer itself: every managed device that has no live lease is taken from its driver, and kept from it, whatever
// has become of the daemon. What it goes by is the fence's own table in the kernel: so it has no socket, nobody tells
// it anything, and it has nothing to remember over a restart.
//
// The kernel refuses new calls at the deadline by itself; this ends what was queued before, soon after.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/error.h"
#include "daemon/fencer/binding.h"
#include "daemon/fencer/worker.h"
#include "plugin/bpf/kernel_fence.h"

namespace usblease::fencer {

// How late an unbinding may begin: a lease can end at any time, without a word to us.
inline constexpr std::uint64_t kLookEveryNs = 50'000'000;
// A thread for each device that is being unbound, since a bad one blocks for seconds. More wait for the next look.
inline constexpr std::size_t kWorkers = 32;

class Guard {
 public:
  static Result<std::unique_ptr<Guard>> make(fence::KernelFence fence, Binding binding);

  // Begins each unbinding that is due. Returns when to look again, CLOCK_BOOTTIME. An error: the table cannot be read.
  Result<std::uint64_t> look();

 private:
  Guard(fence::KernelFence fence, Binding binding) : fence_(std::move(fence)), binding_(std::move(binding)) {}
  [[nodiscard]] bool is_due(const fence::Managed& managed, std::uint64_t now_ns) const;
  void begin(const fence::Managed& managed);

  fence::KernelFence fence_;
  Binding binding_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// Locks all memory and takes a real-time priority; where the host allows neither, a message says what that means.
void claim_resources();

// Loads the fence where it is not loaded, and looks until SIGTERM or SIGINT. An error: it cannot begin or go on.
Result<void> serve();

}  // namespace usblease::fencer
