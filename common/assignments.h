// The devices that a guest declares in its metadata, as `usblease assign` writes them (docs/domain-xml.md):
//
//   <metadata>
//     <usblease:devices xmlns:usblease='urn:usblease:domain:1'>
//       <usblease:device name='dongle' required='yes' wait='30'/>
//     </usblease:devices>
//   </metadata>
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"

namespace usblease {

inline constexpr const char* kMetadataNamespace = "urn:usblease:domain:1";
inline constexpr const char* kMetadataPrefix = "usblease";
inline constexpr std::size_t kAssignmentsMax = 16;
inline constexpr std::uint32_t kAssignmentWaitMaxS = 3600;

struct Assignment {
  std::string device;
  bool required = true;      // required='no': the guest starts without it and gets it later
  std::uint32_t wait_s = 0;  // how long the start may wait for it
};

// `xml`: the one element <devices> of our namespace, at most 64 KiB. kBadInput says what is wrong and where. An unknown
// attribute or element is an error: a misspelled required= must not pass silently.
Result<std::vector<Assignment>> parse_assignments(const std::string& xml);

// The element, as virDomainSetMetadata wants it (without the prefix, with xmlns left to libvirt).
std::string format_assignments(const std::vector<Assignment>& assignments);

}  // namespace usblease
