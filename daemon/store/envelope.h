// The envelope of every record in a store: what makes a flipped bit, a moved row or a record of a newer version an
// error instead of a wrong grant.
//
// Layout: "UL" | version (1 byte) | CRC-32 of key, NUL, payload (4 bytes, big-endian) | payload (protobuf)
#pragma once

#include <string>
#include <string_view>

#include "common/error.h"

namespace usblease::store {

std::string seal(std::string_view key, std::string_view payload);

// kRefused, naming the key and what is wrong with it.
Result<std::string> unseal(std::string_view key, std::string_view sealed);

}  // namespace usblease::store
