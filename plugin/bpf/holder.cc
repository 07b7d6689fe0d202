#include "plugin/bpf/holder.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>

#include "common/boottime.h"

namespace usblease::fence {
namespace {

constexpr ino_t kCgroupRootInode = 1;
constexpr std::uint32_t kLevelsMax = 64;

}  // namespace

Result<Holder> holder_of_process(std::uint32_t pid) {
  if (pid == 0 || pid > INT_MAX) return fail(ErrorCode::kBadInput, "a process has a number from 1 on");
  const auto ticks = process_start_ticks(static_cast<int>(pid));
  if (!ticks) return tl::unexpected(ticks.error());
  Holder out;
  out.pid = pid;
  out.start_ticks = *ticks;
  return out;
}

Result<Holder> holder_of_cgroup(const std::string& path) {
  std::array<char, PATH_MAX> real{};
  if (realpath(path.c_str(), real.data()) == nullptr) return fail_errno(path, errno);
  struct statfs system {};
  if (statfs(real.data(), &system) != 0) return fail_errno(path, errno);
  if (system.f_type != CGROUP2_SUPER_MAGIC) {
    return fail(ErrorCode::kBadInput, path + " is not in the cgroup tree of version 2 (usually /sys/fs/cgroup)");
  }
  struct stat about {};
  if (stat(real.data(), &about) != 0) return fail_errno(path, errno);
  static_assert(sizeof about.st_ino == sizeof(std::uint64_t), "on 64 bits the inode number of a cgroup is its id");
  Holder out;
  out.cgroup = about.st_ino;
  // Its level is how many directories lie between it and the root, which has a fixed inode number.
  std::string up = real.data();
  while (about.st_ino != kCgroupRootInode && out.cgroup_level < kLevelsMax) {
    up += "/..";
    if (stat(up.c_str(), &about) != 0) return fail_errno(up, errno);
    ++out.cgroup_level;
  }
  if (out.cgroup_level == 0) {
    return fail(ErrorCode::kBadInput, path + " is the root of the cgroups, which holds every process; name one below");
  }
  if (about.st_ino != kCgroupRootInode) {
    return fail(ErrorCode::kBadInput,
                path + ": the root of the cgroups cannot be seen from here; is this a container?");
  }
  return out;
}

}  // namespace usblease::fence
