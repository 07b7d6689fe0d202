// The bytes of the home file:
//
//   "usblease-home 1\n"     16 bytes, the number is the format
//   SHA-256 of the rest     32 bytes
//   home::HomeFile          protobuf
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"
#include "home.pb.h"

namespace usblease::host {

inline constexpr std::uint32_t kHomeFormat = 1;
inline constexpr std::size_t kHomeFloorsMax = 4096;                // as in command.proto, RegisterHost
inline constexpr std::size_t kHomeFileBytesMax = 2 * 1024 * 1024;  // kHomeFloorsMax of the greatest floors fit

std::string encode_home(const home::HomeFile& home);

// Checks all of it. `path` stands in messages only. kRefused: damaged, cut short, of another host, or of a newer
// format; the message says what to do.
Result<home::HomeFile> decode_home(const std::string& bytes, const std::string& host_id, const std::string& path);

}  // namespace usblease::host
