#include "cli/output.h"
#include "common/frame.h"

namespace usblease::cli {

Result<void> verb_version(const Invocation& invocation, Context& /*context*/) {
  const std::string protocol = std::to_string(kApiVersion);
  if (invocation.globals.json) {
    print("{\"version\":\"" USBLEASE_VERSION "\",\"protocol\":" + protocol + "}\n");
  } else {
    print("usblease " USBLEASE_VERSION " (request protocol " + protocol + ")\n");
  }
  return {};
}

}  // namespace usblease::cli
