// What the fence refused, as the kernel wrote it down: who tried what, on which device. At most ten a second for each
// device and reason, and only as many as the ring holds while nobody reads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/error.h"
#include "common/fd.h"
#include "plugin/bpf/kernel_fence.h"

struct ring_buffer;

namespace usblease::fence {

struct Refusal {
  DeviceNumber device = 0;
  std::uint64_t at_ns = 0;  // CLOCK_BOOTTIME
  std::uint64_t token = 0;  // the last one that was armed
  std::string reason;       // "no lease", "expired", "not the holder", "unknown device"
  bool open = false;        // else an ioctl
  std::uint32_t ioctl = 0;
  std::uint32_t pid = 0;
  std::uint32_t uid = 0;
  std::string program;  // as the process calls itself, untrusted
};

class Refusals {
 public:
  // There is one reader at a time: what it took, no other sees. kNotFound: the fence is not loaded.
  static Result<Refusals> open(std::function<void(const Refusal&)> take, const std::string& root = kPinRoot);

  // Calls `take` for each that is there.
  Result<void> drain();

 private:
  struct Free {
    void operator()(ring_buffer* ring) const;
  };
  using Take = std::function<void(const Refusal&)>;
  Refusals(UniqueFd map, std::unique_ptr<Take> take, std::unique_ptr<ring_buffer, Free> ring)
      : map_(std::move(map)), take_(std::move(take)), ring_(std::move(ring)) {}
  static int taken(void* take, void* data, std::size_t size);

  UniqueFd map_;
  std::unique_ptr<Take> take_;  // its address is known to the ring
  std::unique_ptr<ring_buffer, Free> ring_;
};

}  // namespace usblease::fence
