// From words to a checked command. Nothing here talks to the daemon.
#pragma once

#include <string>
#include <vector>

#include "cli/options.h"
#include "cli/verb.h"
#include "common/error.h"

namespace usblease::cli {

inline constexpr std::size_t kGuestNameMax = 255;
inline constexpr std::size_t kReasonMax = 512;
inline constexpr std::size_t kDevicesMax = 16;              // of one request
inline constexpr std::uint64_t kWaitMaxS = 30ULL * 86400;   // fits wait_ms of the protocol
inline constexpr std::uint64_t kGraceMaxS = 30ULL * 86400;  // fits grace_ms
inline constexpr std::uint64_t kJoinTokenMaxS = 30ULL * 86400;
inline constexpr std::size_t kWordMax = 4096;  // a path, a join token
inline constexpr std::size_t kAddressesMax = 8;
inline constexpr std::int64_t kPriorityMax = 100;
inline constexpr std::uint64_t kTimeoutMaxS = 86400;

// Options that hold for the whole program; `defaults` where they are not given. kBadInput: a bad value.
Result<Globals> read_globals(const RawArguments& raw, const Globals& defaults);

// The whole command. With help or version set the rest may be unset: nothing else was asked. kBadInput says which
// argument is wrong and what is allowed; kNotFound never.
Result<Invocation> check_command(const RawArguments& raw, const Globals& defaults);

}  // namespace usblease::cli
