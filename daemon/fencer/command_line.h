// What usblease-fence is told on its command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "plugin/bpf/kernel_fence.h"

namespace usblease::fencer {

struct CommandLine {
  std::string verb;  // one of those that usage() names
  fence::DeviceNumber device = 0;
  std::uint64_t token = 0;
  std::uint64_t for_ms = 0;
  std::string cgroup;
  std::uint32_t pid = 0;
};

// kBadInput: what was wrong, and what is allowed.
Result<CommandLine> parse_command_line(const std::vector<std::string>& words);

// "/dev/bus/usb/BUS/DEVICE" or "BUS/DEVICE"; kBadInput.
Result<fence::DeviceNumber> parse_node(const std::string& text);

std::string usage();

}  // namespace usblease::fencer
