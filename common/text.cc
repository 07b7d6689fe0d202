#include "common/text.h"

#include <glib.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>

namespace usblease {
namespace {

bool is_device_character(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; }

bool is_identifier_character(char c) { return is_device_character(c) || c == '.' || (c >= 'A' && c <= 'Z'); }

constexpr std::uint64_t kDurationMaxS = 10ULL * 365 * 86400;

constexpr std::uint64_t kUnixTimeMaxS = 253'402'300'799;  // the end of the year 9999

std::uint64_t unit_seconds(char unit) {
  switch (unit) {
    case 's':
      return 1;
    case 'm':
      return 60;
    case 'h':
      return 3600;
    case 'd':
      return 86400;
    default:
      return 0;
  }
}

}  // namespace

std::string escape_text(std::string_view untrusted) {
  std::string out;
  out.reserve(untrusted.size());
  const char* at = untrusted.data();
  const char* const end = at + untrusted.size();
  while (at < end) {
    const gunichar c = g_utf8_get_char_validated(at, end - at);
    const bool valid = c != static_cast<gunichar>(-1) && c != static_cast<gunichar>(-2);
    if (valid && c != '\\' && g_unichar_isprint(c) != FALSE) {
      const char* const next = g_utf8_next_char(at);
      out.append(at, next);
      at = next;
    } else {
      std::array<char, 5> hex{};
      std::snprintf(hex.data(), hex.size(), "\\x%02X", static_cast<unsigned>(static_cast<unsigned char>(*at)));
      out += hex.data();
      ++at;
    }
  }
  return out;
}

bool is_device_name(std::string_view text) {
  if (text.empty() || text.size() > kDeviceNameMax || text[0] == '-' || text[0] == '_') return false;
  return std::all_of(text.begin(), text.end(), is_device_character);
}

bool is_lock_name(std::string_view text) {
  return text.substr(0, kLockPrefix.size()) == kLockPrefix && is_device_name(text.substr(kLockPrefix.size()));
}

bool is_identifier(std::string_view text) {
  if (text.empty() || text.size() > 64 || text[0] == '.' || text[0] == '-') return false;
  return std::all_of(text.begin(), text.end(), is_identifier_character);
}

Result<std::string> parse_uuid(std::string_view text) {
  std::string lower(text.substr(0, 64));
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) { return g_ascii_tolower(c); });
  if (text.size() != 36 || g_uuid_string_is_valid(lower.c_str()) == FALSE) {
    return fail(ErrorCode::kBadInput, "\"" + escape_text(text.substr(0, 64)) + "\" is not a UUID");
  }
  return lower;
}

Result<std::uint64_t> parse_duration_s(std::string_view text) {
  const auto bad = [&] {
    return fail(ErrorCode::kBadInput,
                "\"" + escape_text(text.substr(0, 64)) +
                    "\" is not a duration; write for example 90s, 15m, 2h30m or 1d, at most 10 years");
  };
  if (text.empty()) return bad();
  std::uint64_t total_s = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t number = 0;
    const std::size_t first = at;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
      number = number * 10 + static_cast<std::uint64_t>(text[at] - '0');
      if (number > kDurationMaxS) return bad();
      ++at;
    }
    if (at == first) return bad();
    const bool last = at == text.size();
    const std::uint64_t unit_s = last ? (first == 0 ? 1 : 0) : unit_seconds(text[at++]);
    if (unit_s == 0) return bad();
    total_s += number * unit_s;
    if (total_s > kDurationMaxS) return bad();
  }
  return total_s;
}

std::string format_duration(std::uint64_t seconds) {
  if (seconds == 0) return "0s";
  std::string out;
  for (const auto& [unit_s, letter] : {std::pair{86400ULL, 'd'}, {3600ULL, 'h'}, {60ULL, 'm'}, {1ULL, 's'}}) {
    if (seconds >= unit_s) {
      out += std::to_string(seconds / unit_s) + letter;
      seconds %= unit_s;
    }
  }
  return out;
}

std::string format_unix_time(std::uint64_t unix_s) {
  if (unix_s == 0 || unix_s > kUnixTimeMaxS) return "-";
  const auto when = static_cast<std::time_t>(unix_s);
  std::tm local{};
  localtime_r(&when, &local);
  std::array<char, 32> out{};
  if (std::strftime(out.data(), out.size(), "%Y-%m-%d %H:%M:%S", &local) == 0) return "-";
  return out.data();
}

}  // namespace usblease
