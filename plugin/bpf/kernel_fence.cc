#include "plugin/bpf/kernel_fence.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "common/boottime.h"
#include "plugin/bpf/fence_abi.h"
#include "plugin/bpf/pinned_map.h"

namespace usblease::fence {
namespace {

// Held while something is read, decided and written.
class Lock {
 public:
  explicit Lock(const UniqueFd& directory) : fd_(directory.get()) {
    while (flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { flock(fd_, LOCK_UN); }

 private:
  int fd_;
};

tl::unexpected<Error> not_managed(DeviceNumber device) {
  return fail(ErrorCode::kNotFound, "the fence does not manage device " + to_text(device));
}

tl::unexpected<Error> refused(DeviceNumber device, std::uint64_t token, const std::string& why) {
  return fail(ErrorCode::kRefused,
              "device " + to_text(device) + ": token " + std::to_string(token) + " is refused: " + why);
}

// May `grant` be armed where `now` is what the kernel has?
Result<void> check_grant(const usblease_fence_entry& now, const Grant& grant) {
  if (grant.token == 0 || grant.deadline_ns == 0 || (grant.holder.pid == 0 && grant.holder.cgroup == 0)) {
    return fail(ErrorCode::kBadInput, "a lease has a token, a deadline and a holder, none of them 0");
  }
  if (grant.token < now.token) {
    return refused(now.device, grant.token, "token " + std::to_string(now.token) + " was armed already");
  }
  const bool ended = now.deadline_ns <= boottime_now_ns();  // 0: disarmed
  if (grant.token == now.token && ended) return refused(now.device, grant.token, "it has ended");
  return {};
}

// All keys of a map. With the lock held: a key that is taken out during the walk would begin it anew.
std::vector<DeviceNumber> keys(const UniqueFd& map) {
  std::vector<DeviceNumber> out;
  DeviceNumber key = 0;
  const DeviceNumber* before = nullptr;
  while (out.size() < USBLEASE_FENCE_DEVICES_MAX && bpf_map_get_next_key(map.get(), before, &key) == 0) {
    out.push_back(key);
    before = &key;
  }
  return out;
}

Result<void> put_flag(const UniqueFd& map, DeviceNumber device) {
  const std::uint8_t yes = 1;
  if (bpf_map_update_elem(map.get(), &device, &yes, BPF_ANY) != 0) return fail_errno(to_text(device), errno);
  return {};
}

Result<void> take_out(const UniqueFd& map, DeviceNumber device) {
  if (bpf_map_delete_elem(map.get(), &device) == 0 || errno == ENOENT) return {};
  return fail_errno("forgetting device " + to_text(device), errno);
}

}  // namespace

Result<KernelFence> KernelFence::open(const std::string& root) {
  UniqueFd directory(::open(version_directory(root).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  std::array<UniqueFd, 4> maps;
  const std::array<const char*, 4> map_names = {"entries", "counts", "free_devices", "settings"};
  for (std::size_t i = 0; i < maps.size(); ++i) {
    auto map = open_map(root, map_names[i]);
    if (!map) return tl::unexpected(map.error());
    maps[i] = std::move(*map);
  }
  if (!directory) return fail_errno(version_directory(root), errno);
  return KernelFence(root, std::move(directory), std::move(maps[0]), std::move(maps[1]), std::move(maps[2]),
                     std::move(maps[3]));
}

Result<usblease_fence_entry> KernelFence::read(DeviceNumber device) const {
  usblease_fence_entry entry{};
  if (bpf_map_lookup_elem_flags(entries_.get(), &device, &entry, BPF_F_LOCK) == 0) return entry;
  if (errno == ENOENT) return not_managed(device);
  return fail_errno("reading the fence's entry of device " + to_text(device), errno);
}

Result<void> KernelFence::write(const usblease_fence_entry& entry, std::uint64_t flags) {
  if (bpf_map_update_elem(entries_.get(), &entry.device, &entry, flags | BPF_F_LOCK) == 0) return {};
  if (errno == E2BIG) {
    return fail(ErrorCode::kUnavailable, "the fence has room for " + std::to_string(USBLEASE_FENCE_DEVICES_MAX) +
                                             " devices, and all are managed");
  }
  return fail_errno("writing the fence's entry of device " + to_text(entry.device), errno);
}

Result<void> KernelFence::manage(DeviceNumber device) {
  if (device >> 20U != USBLEASE_USB_DEVICE_MAJOR) {
    return fail(ErrorCode::kBadInput, to_text(device) + " is not the number of a usbfs node, whose major is 189");
  }
  const Lock lock(directory_);
  const auto now = read(device);
  if (now) return {};
  if (now.error().code != ErrorCode::kNotFound) return tl::unexpected(now.error());
  const usblease_fence_counts none{};
  if (bpf_map_update_elem(counts_.get(), &device, &none, BPF_ANY) != 0) return fail_errno(to_text(device), errno);
  usblease_fence_entry entry{};
  entry.device = device;
  if (auto written = write(entry, BPF_NOEXIST); !written) return written;
  return take_out(free_devices_, device);
}

Result<void> KernelFence::arm(DeviceNumber device, const Grant& grant) {
  const Lock lock(directory_);
  auto entry = read(device);
  if (!entry) return tl::unexpected(entry.error());
  if (auto allowed = check_grant(*entry, grant); !allowed) return allowed;
  if (grant.token == entry->token && grant.deadline_ns < entry->deadline_ns) {
    return refused(device, grant.token, "a later deadline is armed");
  }
  entry->token = grant.token;
  entry->deadline_ns = grant.deadline_ns;
  entry->cgroup = grant.holder.cgroup;
  entry->cgroup_level = grant.holder.cgroup_level;
  entry->tgid = grant.holder.pid;
  entry->start_ticks = grant.holder.start_ticks;
  return write(*entry, BPF_EXIST);
}

Result<void> KernelFence::extend(DeviceNumber device, std::uint64_t token, std::uint64_t deadline_ns) {
  const Lock lock(directory_);
  auto entry = read(device);
  if (!entry) return tl::unexpected(entry.error());
  if (entry->token != token) return refused(device, token, "token " + std::to_string(entry->token) + " is armed");
  if (entry->deadline_ns <= boottime_now_ns()) return refused(device, token, "it has ended");
  if (deadline_ns <= entry->deadline_ns) return {};  // an answer that was overtaken
  entry->deadline_ns = deadline_ns;
  return write(*entry, BPF_EXIST);
}

Result<void> KernelFence::disarm(DeviceNumber device, std::uint64_t token) {
  const Lock lock(directory_);
  auto entry = read(device);
  if (!entry) return tl::unexpected(entry.error());
  if (entry->token > token) return {};
  entry->token = token;
  entry->deadline_ns = 0;
  return write(*entry, BPF_EXIST);
}

Result<void> KernelFence::forget(DeviceNumber device) {
  const Lock lock(directory_);
  if (auto done = take_out(entries_, device); !done) return done;
  if (auto done = take_out(free_devices_, device); !done) return done;
  return take_out(counts_, device);
}

Result<void> KernelFence::refuse_unknown(bool refuse) {
  const std::uint32_t only = 0;
  const usblease_fence_settings value = {refuse ? 1U : 0U};
  if (bpf_map_update_elem(settings_.get(), &only, &value, BPF_ANY) != 0)
    return fail_errno("the fence's settings", errno);
  return {};
}

Result<void> KernelFence::set_free(DeviceNumber device) {
  const Lock lock(directory_);
  if (read(device)) return fail(ErrorCode::kRefused, "device " + to_text(device) + " is managed; forget it first");
  return put_flag(free_devices_, device);
}

Result<std::vector<Managed>> KernelFence::managed() const {
  const Lock lock(directory_);
  std::vector<Managed> out;
  for (const DeviceNumber device : keys(entries_)) {
    const auto entry = read(device);
    if (!entry) return tl::unexpected(entry.error());
    usblease_fence_counts seen{};
    bpf_map_lookup_elem(counts_.get(), &device, &seen);
    Managed& one = out.emplace_back();
    one.device = device;
    one.grant = {
        entry->token, entry->deadline_ns, {entry->cgroup, entry->cgroup_level, entry->tgid, entry->start_ticks}};
    one.allowed = seen.allowed;
    one.refused = seen.refused;
    one.last_allowed_ns = seen.last_allowed_ns;
    one.last_refused_ns = seen.last_refused_ns;
  }
  return out;
}

Result<std::vector<DeviceNumber>> KernelFence::free_devices() const {
  const Lock lock(directory_);
  return keys(free_devices_);
}

Result<UniqueFd> KernelFence::lock_classification() const {
  UniqueFd fd(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno(root_, errno);
  while (flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return fail_errno("locking " + root_, errno);
  }
  return fd;
}

}  // namespace usblease::fence
