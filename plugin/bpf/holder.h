// Who may use a leased device, as the kernel can tell at any call: a process, or whoever is in a cgroup.
#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"

namespace usblease::fence {

// What is not 0 must fit; all 0 means nobody.
struct Holder {
  std::uint64_t cgroup = 0;  // its id
  std::uint32_t cgroup_level = 0;
  std::uint32_t pid = 0;
  std::uint64_t start_ticks = 0;
};

// This process of this boot, all its threads, and none of its children. kNotFound: it is gone.
Result<Holder> holder_of_process(std::uint32_t pid);

// Every process in this cgroup and below, those that are still to come too: so it can be known before a QEMU opens its
// device. `path` is a directory of the version 2 tree ("/sys/fs/cgroup/machine.slice/…"); kBadInput: it is none, or the
// root, which holds everybody.
Result<Holder> holder_of_cgroup(const std::string& path);

}  // namespace usblease::fence
