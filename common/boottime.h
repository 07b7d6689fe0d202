// CLOCK_BOOTTIME: the only clock that a decision about exclusion may read.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"

namespace usblease {

// Nanoseconds of CLOCK_BOOTTIME. Never fails on Linux >= 2.6.39.
std::uint64_t boottime_now_ns();

// Seconds since 1970, for people and for `until` only.
std::uint64_t wall_clock_unix_s();

// Refuses a time namespace with an offset of CLOCK_BOOTTIME: there "now" is not the kernel's now, and
// a deadline would mean another instant to the kernel, to QEMU and to a second daemon.
// Reads /proc/self/timens_offsets (time_namespaces(7)); `path` is for tests. Absent: fine (no such kernel feature).
Result<void> check_time_namespace(const std::string& path = "/proc/self/timens_offsets");

// /proc/sys/kernel/random/boot_id, 36 characters.
Result<std::string> read_boot_id();

// /proc/PID/stat field 22: start of the process in clock ticks since boot; with the PID it names one
// process of this boot. kNotFound when the process is gone.
Result<std::uint64_t> process_start_ticks(int pid);

}  // namespace usblease
