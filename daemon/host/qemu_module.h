// Whether a guest's QEMU has loaded the modules that enforce leases, or stock ones that would let everything through.
//
// A stock module works like ours until the deadline, and then goes on: so before a guest counts as having the `qemu`
// rung, its process is looked at. A monitor command would taint the domain; the kernel's list of what the process has
// mapped is a better witness anyway, and the build-id in those very files cannot be mistaken for another's.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>

#include "common/error.h"

namespace usblease::host {

// Build-ids, in hex as `readelf -n` prints them.
using BuildIds = std::set<std::string>;

// What install-module writes down. build-ids: of our modules, a line each. directory: where QEMU finds modules.
// changed: written last, whatever it did.
inline constexpr const char* kModuleStateDir = "/var/lib/usblease/qemu-module";
inline constexpr const char* kBuildIdsPath = "/var/lib/usblease/qemu-module/build-ids";

// At most 64 lines of 8 to 40 hex digits; kNotFound: our modules are not installed; kBadInput.
Result<BuildIds> read_build_ids(const std::string& path);

// The build-id of a 64-bit ELF file; kBadInput when it is none or has none. Reads at most a few KiB of it.
Result<std::string> build_id_of(const std::string& path);

enum class QemuModule : std::uint8_t { kUsbHost, kUsbRedirect };

const char* module_file_name(QemuModule module);

enum class ModuleUse : std::uint8_t {
  kAbsent,    // not loaded: QEMU loads it with its first device of that kind. Look again then
  kEnforces,  // one of `ours`
  kStock,     // another one: it does not stop a device
};

// Which `module` the process has mapped. Two different ones, ours among them, count as stock. kNotFound: no such
// process; kDenied: not root.
Result<ModuleUse> module_in_use(pid_t pid, QemuModule module, const BuildIds& ours, const std::string& proc = "/proc");

// Guests that start now get modules of ours: they are where QEMU looks for them, and carry the stamp of the
// distribution's own, which install-module has put beside them. kNotFound: not installed; kRefused, kBadInput: what is
// wrong. Says nothing of guests that run.
Result<void> check_installed(const std::string& state_dir = kModuleStateDir);

}  // namespace usblease::host
