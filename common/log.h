// The one logger: structured lines, to the journal when stderr is connected to it, else to stderr.
//
//   log::info("granted", {{"DEVICE", "dongle"}, {"TOKEN", "17"}});
//
// Field names are journal field names (upper case); those in use: DEVICE, GUEST, GUEST_UUID, HOST, TOKEN,
// REQUEST, PEER, ERROR. Values are escaped (text.h) when they go to stderr.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace usblease::log {

using Fields = std::initializer_list<std::pair<const char*, std::string>>;

enum class Level : std::uint8_t { kDebug, kInfo, kWarning, kError };

// Call once, first in main. `program` stands before each line on stderr; lines below `least` are dropped.
void setup(const char* program, Level least);
void set_level(Level least);

void write(Level level, std::string_view message, Fields fields);

inline void debug(std::string_view message, Fields fields = {}) { write(Level::kDebug, message, fields); }
inline void info(std::string_view message, Fields fields = {}) { write(Level::kInfo, message, fields); }
inline void warning(std::string_view message, Fields fields = {}) { write(Level::kWarning, message, fields); }
inline void error(std::string_view message, Fields fields = {}) { write(Level::kError, message, fields); }

}  // namespace usblease::log
