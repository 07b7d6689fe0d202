// The one mapping between our error codes and the codes of the protocol, which mean the same (common/error.h).
// Apart from error.h, so that what knows no messages does not load them.
#pragma once

#include "command.pb.h"
#include "common/error.h"

namespace usblease {

inline command::Code code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRefused:
      return command::CODE_REFUSED;
    case ErrorCode::kTimedOut:
      return command::CODE_TIMED_OUT;
    case ErrorCode::kNotFound:
      return command::CODE_NOT_FOUND;
    case ErrorCode::kBadInput:
      return command::CODE_BAD_REQUEST;
    case ErrorCode::kDenied:
      return command::CODE_DENIED;
    case ErrorCode::kUnavailable:
      return command::CODE_UNAVAILABLE;
    case ErrorCode::kInternal:
      return command::CODE_INTERNAL;
  }
  return command::CODE_INTERNAL;
}

// Of a final status that is not CODE_OK. QUEUED is no end, and what is absent or unknown was not understood: kInternal.
inline ErrorCode error_code_of(command::Code code) {
  switch (code) {
    case command::CODE_REFUSED:
      return ErrorCode::kRefused;
    case command::CODE_TIMED_OUT:
      return ErrorCode::kTimedOut;
    case command::CODE_NOT_FOUND:
      return ErrorCode::kNotFound;
    case command::CODE_BAD_REQUEST:
      return ErrorCode::kBadInput;
    case command::CODE_DENIED:
      return ErrorCode::kDenied;
    case command::CODE_UNAVAILABLE:
      return ErrorCode::kUnavailable;
    default:
      return ErrorCode::kInternal;
  }
}

}  // namespace usblease
