// Which managed devices a guest declares, and what it may not name. The rules are in docs/domain-xml.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/error.h"
#include "common/usb_sysfs.h"
#include "plugin/libvirt/domain_xml.h"

namespace usblease::hook {

using usb::Sysfs;

inline constexpr std::size_t kDeclaredMax = 16;
inline constexpr std::size_t kNodesMax = 1024;  // host device nodes that one guest names

enum class Way : std::uint8_t { kMetadata, kRedirdev, kHostdev };

struct Declared {
  std::string device;
  Way way = Way::kMetadata;
  bool required = true;
  std::uint32_t wait_s = 0;
};

// Gives the configuration; called at most once, and only for a guest for which it matters.
using LoadConfig = std::function<Result<const Config*>()>;

// The declared devices, in the order of metadata, redirdevs, hostdevs; empty: the guest has nothing to do with us.
// An error is one sentence for people and means that the guest must not start: bad metadata, a configuration that does
// not parse, something that is ambiguous, another guest's socket, a node or a controller of a managed device.
Result<std::vector<Declared>> find_declarations(const Domain& domain, const LoadConfig& load_config,
                                                const Sysfs& sysfs);

}  // namespace usblease::hook
