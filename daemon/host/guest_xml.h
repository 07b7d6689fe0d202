// Our devices in libvirt's domain XML: aliases ua-usblease-DEVICE.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::host {

inline constexpr std::size_t kDomainXmlBytesMax = 8 * 1024 * 1024;

// "ua-usblease-DEVICE".
std::string device_alias(const std::string& device);

// The reverse; nullopt: not an alias of ours.
std::optional<std::string> device_of_alias(std::string_view alias);

// The names of our devices that a domain's live XML shows. kBadInput: too large, or no domain.
Result<std::vector<std::string>> attached_devices(const std::string& domain_xml);

// A usbredir device whose QEMU connects to the Unix socket at `socket_path`.
std::string redirdev_xml(const std::string& device, const std::string& socket_path);

// A device of the host's bus. `managed` is no: which driver has it is decided by its home, not by libvirt. No `device`:
// without an alias.
std::string hostdev_xml(const std::string& device, std::uint32_t bus, std::uint32_t number);

// Whether a domain's live XML shows a <hostdev> for this device of the host's bus. Also true when it cannot be read.
bool has_hostdev_at(const std::string& domain_xml, std::uint32_t bus, std::uint32_t number);

}  // namespace usblease::host
