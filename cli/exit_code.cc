#include "cli/exit_code.h"

#include "common/status_code.h"

namespace usblease::cli {

ExitCode exit_code_for(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRefused:
    case ErrorCode::kDenied:
      return ExitCode::kRefused;
    case ErrorCode::kTimedOut:
      return ExitCode::kTimedOut;
    case ErrorCode::kNotFound:
      return ExitCode::kNotFound;
    case ErrorCode::kBadInput:
      return ExitCode::kBadUsage;
    case ErrorCode::kUnavailable:
      return ExitCode::kUnavailable;
    case ErrorCode::kInternal:
      return ExitCode::kFailed;
  }
  return ExitCode::kFailed;
}

std::optional<ErrorCode> error_of(command::Code code) {
  if (code == command::CODE_OK) return std::nullopt;
  return error_code_of(code);
}

}  // namespace usblease::cli
