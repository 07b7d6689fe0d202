// Which rungs of the fence ladder this host really has (docs/architecture.md).
#pragma once

#include <string>
#include <vector>

#include "api.pb.h"
#include "common/config.h"
#include "daemon/host/qemu_module.h"

namespace usblease::host {

// What only the running daemon knows.
struct RungFacts {
  bool libvirt_connected = false;
  std::string page_trouble;  // LeasePages::trouble()
};

// All rungs, weakest first, each with whether it is there and why (not). Looks at files and at the kernel; cheap.
// `module_state`: where install-module writes down what it did.
std::vector<api::RungReport> report_rungs(const Config& config, const RungFacts& facts,
                                          const std::string& module_state = kModuleStateDir);

}  // namespace usblease::host
