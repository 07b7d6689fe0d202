// The exit codes of usblease, documented in docs/usblease.rst: scripts depend on them, a number never changes.
#pragma once

#include <cstdint>
#include <optional>

#include "command.pb.h"
#include "common/error.h"

namespace usblease::cli {

enum class ExitCode : std::uint8_t {
  kOk = 0,
  kFailed = 1,       // an error of ours or of the daemon that nobody expected
  kBadUsage = 2,     // the command line, or the request, is wrong
  kRefused = 3,      // by policy, because somebody else has it, or because the caller may not
  kTimedOut = 4,     // the wait, or --timeout, is over
  kUnavailable = 5,  // the daemon is not reachable, or cannot do it now
  kNotFound = 6,     // no such device or guest
  kInterrupted = 130,
};

ExitCode exit_code_for(ErrorCode code);

// What a final status means; nullopt: success. An unknown or absent code is kInternal: not understood is not done.
std::optional<ErrorCode> error_of(command::Code code);

}  // namespace usblease::cli
