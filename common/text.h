// Text that crosses a border: names, durations, and untrusted strings made printable.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/error.h"

namespace usblease {

// Bytes that are not printable ASCII or valid printable UTF-8, and backslashes, become \xNN. Quotes stay.
std::string escape_text(std::string_view untrusted);

// A device's cluster-wide name: 1..48 of [a-z0-9_-], beginning with a letter or digit. The bound comes from
// sun_path (unix(7)), since the guest socket's path holds it; the characters from libvirt's user aliases.
inline constexpr std::size_t kDeviceNameMax = 48;
bool is_device_name(std::string_view text);

// A named lock, which is leased as a device is: "lock/" and a name like a device's.
inline constexpr std::string_view kLockPrefix = "lock/";
bool is_lock_name(std::string_view text);

// A request id, host id: 1..64 of [A-Za-z0-9._-], not beginning with '.' or '-'.
bool is_identifier(std::string_view text);

// Canonical form of a UUID (lower case, 36 characters), or kBadInput.
Result<std::string> parse_uuid(std::string_view text);

// "90", "90s", "15m", "2h30m", "1d" → seconds; at most 10 years; kBadInput says what is allowed.
Result<std::uint64_t> parse_duration_s(std::string_view text);

// 5400 → "1h30m".
std::string format_duration(std::uint64_t seconds);

// Local time, "2026-11-23 17:40:10"; 0 → "-".
std::string format_unix_time(std::uint64_t unix_s);

// n random bytes from getrandom(2), as 2n lower-case hex digits.
std::string random_hex(std::size_t bytes);

}  // namespace usblease
