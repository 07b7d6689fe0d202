// The one error type. Every function that can fail at a module's border returns Result<T>.
#pragma once

#include <cstdint>
#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace usblease {

// The same meanings as command::Code in proto/command.proto, and as the exit codes of the CLI.
enum class ErrorCode : std::uint8_t {
  kRefused,  // by policy, or because somebody else has it
  kTimedOut,
  kNotFound,
  kBadInput,     // what was given is wrong: says where, and what is allowed
  kDenied,       // the caller may not
  kUnavailable,  // try again later: no coordinator, full disk, libvirt away
  kInternal,     // a system call or library failed in a way that nobody expected
};

struct Error {
  ErrorCode code;
  // One sentence or two for people: what happened, to what, what to do next. No final newline.
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;

[[nodiscard]] inline tl::unexpected<Error> fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

// "what: strerror(error_number)", kInternal.
[[nodiscard]] tl::unexpected<Error> fail_errno(const std::string& what, int error_number);

}  // namespace usblease
