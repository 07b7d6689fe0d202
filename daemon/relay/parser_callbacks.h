// What the relay hangs into libusbredirparser: bytes in and out, and every packet on to the other side.
#pragma once

#include <usbredirparser.h>

#include <memory>

#include "daemon/relay/stream.h"

namespace usblease::relay {

struct ParserFree {
  void operator()(usbredirparser* parser) const { usbredirparser_destroy(parser); }
};
using ParserPtr = std::unique_ptr<usbredirparser, ParserFree>;

// Whose bytes a parser reads. Must outlive the parser.
struct ParserContext {
  Stream* stream;
  Side side;
};

// A parser with all callbacks set, not yet initialised; nullptr: out of memory.
ParserPtr create_forwarding_parser(ParserContext* context);

}  // namespace usblease::relay
