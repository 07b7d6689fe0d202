// Tells without an XML parser that a domain XML declares nothing. It runs before every start of every guest, so this
// and input.h use the C library alone: loading libxml2 and protobuf takes longer than all the rest of the hook.
#pragma once

#include <cstddef>

namespace usblease::hook {

// false: whatever follows, this piece of XML names nothing that a rule of declarations.h looks for. true: it may.
// `is_head`: the piece is the beginning of the text. Pieces must overlap by kOverlapBytes.
bool may_declare(const char* text, std::size_t size, bool is_head);

inline constexpr std::size_t kOverlapBytes = 64;

}  // namespace usblease::hook
