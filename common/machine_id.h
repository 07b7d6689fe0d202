// Which machine this is, whatever boots on it.
#pragma once

#include <string>

namespace usblease {

// The firmware's UUID (a clone of a virtual machine usually gets another one), else /etc/machine-id; at most 64
// characters. Empty: neither can be read.
std::string machine_uuid();

}  // namespace usblease
