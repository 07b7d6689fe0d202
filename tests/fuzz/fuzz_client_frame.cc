// Any bytes as one client's stream, cut anywhere: frames, messages, and what a handler reads from them. The first byte
// says into how large pieces the rest is cut.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "api.pb.h"
#include "common/frame.h"
#include "common/text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t piece = static_cast<std::size_t>(data[0]) + 1;
  const char* const bytes = reinterpret_cast<const char*>(data) + 1;
  usblease::FrameReader reader;
  for (std::size_t at = 0; at < size - 1; at += piece) {
    reader.push({bytes + at, std::min(piece, size - 1 - at)});
    for (;;) {
      const auto payload = reader.next();
      if (!payload) return 0;  // the server hangs up here
      if (!payload->has_value()) break;
      usblease::api::ClientFrame frame;
      if (!frame.ParseFromString(**payload)) return 0;
      // What was understood is said again in the same way, and fits into a frame.
      usblease::api::ClientFrame again;
      if (!again.ParseFromString(frame.SerializeAsString())) std::abort();
      if (again.SerializeAsString() != frame.SerializeAsString()) std::abort();
      if (usblease::escape_text(frame.hello().program()).find('\n') != std::string::npos) std::abort();
    }
  }
  return 0;
}
