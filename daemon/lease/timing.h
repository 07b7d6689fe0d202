// All arithmetic of time, in this one place. Times are CLOCK_BOOTTIME in nanoseconds of the machine that took them; two
// machines' times are never compared, only durations are, and their clocks may run apart by `drift` at most.
//
// clang-format off
// | timeout   | default | fast   | bounded below by                            | bounded above by
// |-----------|---------|--------|---------------------------------------------|------------------------------------------
// | ttl       | 10 s    | 1 s    | 3 × renewal: two lost renewals cost nothing | how long a device may stay with a guest that nobody can reach any more
// | renewal   | 2 s     | 200 ms | cost: one message a host                    | ttl / 3
// | grace     | 1 s     | 300 ms | what enforcement may be late: QEMU's abort of a URB 260 ms, scheduling, clock error | takeover time after a host is gone
// | drift     | 500 ppm |        | the worst oscillator pair (100 ppm each)    | what it costs: ttl × drift
// | read gap  | 20 ms   |        | load on the store                           | renewal
// | isolation | = ttl   |        | ttl                                         | a business decision, per device; above ttl only where no second host can reach the device
// | answer    | 5 s     |        | one slow disk write                         | a client's patience
// clang-format on
//
// Why it is safe (docs/architecture.md, Time): a host stops a device at t0 + limit × (1 − drift), where t0 was taken
// before the renewal was sent. The coordinator counts the host as gone at answered + ttl × (1 + drift) + grace, where
// `answered` is after the renewal arrived, so after t0. With clocks that run apart by at most `drift`, the host has
// stopped first. Even so, time alone frees nothing: see core.h.
#pragma once

#include <cstdint>

#include "common/mutant.h"

namespace usblease::lease {

inline constexpr std::uint64_t kNsPerMs = 1'000'000;
inline constexpr std::uint64_t kReadGapNs = 20 * kNsPerMs;

struct Timing {
  std::uint32_t ttl_ms = 10'000;
  std::uint32_t renewal_ms = 2'000;
  std::uint32_t grace_ms = 1'000;
  std::uint32_t drift_ppm = 500;
};

// Host: when a device stops by itself. `renewal_sent_ns`: taken before the renewal was sent.
inline std::uint64_t deadline_ns(const Timing& timing, std::uint64_t renewal_sent_ns, std::uint32_t limit_ms) {
  const std::uint64_t limit_ns = limit_ms * kNsPerMs;
  const std::uint64_t drift_ns = limit_ns / 1'000'000 * timing.drift_ppm;
  return renewal_sent_ns + (MUTANT(drift_wrong_way) ? limit_ns + drift_ns : limit_ns - drift_ns);
}

// Coordinator: when a host counts as gone. `answered_ns`: of its last renewal; for a new coordinator, which knows no
// renewals, the instant of its election. Also when the token of a lock has expired that was to end at `answered_ns`
// (agenda.h).
inline std::uint64_t gone_ns(const Timing& timing, std::uint64_t answered_ns) {
  const std::uint64_t ttl_ns = timing.ttl_ms * kNsPerMs;
  const std::uint64_t drift_ns = ttl_ns / 1'000'000 * timing.drift_ppm;
  return answered_ns + (MUTANT(drift_wrong_way) ? ttl_ns - drift_ns : ttl_ns + drift_ns) + timing.grace_ms * kNsPerMs;
}

}  // namespace usblease::lease
