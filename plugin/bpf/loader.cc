#include "plugin/bpf/loader.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fence.skel.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "common/directory.h"
#include "common/log.h"
#include "plugin/bpf/support.h"

namespace usblease::fence {
namespace {

constexpr std::size_t kPinsMax = 64;
constexpr const char* kLinkPrefix = "link_";
constexpr const char* kNewSuffix = "_new";
constexpr const char* kCompatHook = "file_ioctl_compat";

using Skeleton = std::unique_ptr<fence_bpf, decltype(&fence_bpf__destroy)>;
struct LinkCloser {
  void operator()(bpf_link* link) const { bpf_link__destroy(link); }
};
using Link = std::unique_ptr<bpf_link, LinkCloser>;
using Tag = std::array<unsigned char, BPF_TAG_SIZE>;

int log_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
  if (level != LIBBPF_WARN) return 0;
  std::array<char, 2048> line{};
  const int length = std::vsnprintf(line.data(), line.size(), format, arguments);
  std::string text = line.data();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  log::warning(text);
  return length;
}

std::string below(const std::string& directory, const std::string& name) {
  std::string out = directory;
  out += '/';
  return out += name;
}

bool is_link(const std::string& name) { return name.rfind(kLinkPrefix, 0) == 0; }

std::string link_path(const std::string& root, const bpf_program* program) {
  return version_directory(root) + "/" + kLinkPrefix + bpf_program__name(program);
}

Result<Tag> tag_of(int program_fd) {
  bpf_prog_info info{};
  __u32 size = sizeof info;
  if (bpf_obj_get_info_by_fd(program_fd, &info, &size) != 0) return fail_errno("looking at a BPF program", errno);
  Tag tag{};
  std::copy(std::begin(info.tag), std::end(info.tag), tag.begin());
  return tag;
}

// The tag, a digest of the instructions, of the program behind a pinned link.
Result<Tag> pinned_tag(const std::string& path) {
  const UniqueFd link(bpf_obj_get(path.c_str()));
  if (!link) return fail(errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kInternal, path + ": " + strerror(errno));
  bpf_link_info info{};
  __u32 size = sizeof info;
  if (bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) return fail_errno(path, errno);
  const UniqueFd program(bpf_prog_get_fd_by_id(info.prog_id));
  if (!program) return fail_errno(path, errno);
  return tag_of(program.get());
}

Result<bool> is_current(const std::string& path, const bpf_program* program) {
  const auto mine = tag_of(bpf_program__fd(program));
  if (!mine) return tl::unexpected(mine.error());
  const auto pinned = pinned_tag(path);
  if (pinned) return *pinned == *mine;
  if (pinned.error().code == ErrorCode::kNotFound) return false;
  return tl::unexpected(pinned.error());
}

// The new link is in force before its name replaces the old one's, which then ends.
Result<void> pin_link(const std::string& path, const bpf_program* program) {
  const auto current = is_current(path, program);
  if (!current) return tl::unexpected(current.error());
  if (*current) return {};
  const Link link(bpf_program__attach_lsm(program));
  if (link == nullptr) return fail_errno(std::string("attaching ") + bpf_program__name(program), errno);
  const std::string fresh = path + kNewSuffix;
  unlink(fresh.c_str());  // of a load that broke off
  if (bpf_link__pin(link.get(), fresh.c_str()) != 0) return fail_errno("pinning " + fresh, errno);
  if (rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("pinning " + path, errno);
  return {};
}

Result<Skeleton> load_program(const std::string& root) {
  libbpf_set_print(log_libbpf);
  Skeleton skeleton(fence_bpf__open(), fence_bpf__destroy);
  if (skeleton == nullptr) return fail_errno("reading the BPF program", errno);
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    const std::string path = version_directory(root) + "/" + bpf_map__name(map);
    if (bpf_map__set_pin_path(map, path.c_str()) != 0) return fail_errno("naming the pin " + path, errno);
  }
  const bool has_compat_hook = libbpf_find_vmlinux_btf_id(kCompatHook, BPF_LSM_MAC) > 0;
  bpf_program__set_autoload(skeleton->progs.fence_ioctl_compat, has_compat_hook);
  if (fence_bpf__load(skeleton.get()) != 0) {
    const int error = errno;
    return fail(ErrorCode::kUnavailable, std::string("the kernel does not take the BPF program of the fence: ") +
                                             strerror(error) + "; the log has its reasons, if it gave any");
  }
  return skeleton;
}

Result<void> make_version_directory(const std::string& root) {
  const std::string above = root.substr(0, root.rfind('/'));
  struct statfs system {};
  if (statfs(above.c_str(), &system) != 0 || system.f_type != BPF_FS_MAGIC) {
    return fail(ErrorCode::kUnavailable, above + " is no BPF file system, so nothing can outlive its loader; " +
                                             "mount one: mount -t bpf bpf " + above);
  }
  const std::string mine = version_directory(root);
  for (const std::string& name : list_names(root, kPinsMax)) {
    const std::string other = below(root, name);
    if (other == mine) continue;
    return fail(ErrorCode::kRefused, other + " belongs to another version of the fence, and two do not know of each " +
                                         "other; unload it first: usblease-fence unload");
  }
  for (const std::string& path : {root, mine}) {
    if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("making " + path, errno);
  }
  return {};
}

Result<void> load_and_pin(const std::string& root) {
  const auto skeleton = load_program(root);
  if (!skeleton) return tl::unexpected(skeleton.error());
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, (*skeleton)->obj) {
    if (!bpf_program__autoload(program)) continue;
    if (auto pinned = pin_link(link_path(root, program), program); !pinned) return pinned;
  }
  return {};
}

}  // namespace

Result<KernelFence> load_fence(const std::string& root) {
  if (auto supported = check_support(); !supported) return tl::unexpected(supported.error());
  if (auto made = make_version_directory(root); !made) return tl::unexpected(made.error());
  const UniqueFd directory(open(version_directory(root).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail_errno(version_directory(root), errno);
  while (flock(directory.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return fail_errno("locking " + version_directory(root), errno);
  }
  if (auto loaded = load_and_pin(root); !loaded) return tl::unexpected(loaded.error());
  return KernelFence::open(root);
}

Result<void> unload_fence(const std::string& root) {
  for (const std::string& version : list_names(root, kPinsMax)) {
    const std::string directory = below(root, version);
    auto names = list_names(directory, kPinsMax);
    std::stable_partition(names.begin(), names.end(), is_link);
    for (const std::string& name : names) {
      const std::string path = below(directory, name);
      if (unlink(path.c_str()) != 0) return fail_errno("removing " + path, errno);
    }
    if (rmdir(directory.c_str()) != 0) return fail_errno("removing " + directory, errno);
  }
  if (rmdir(root.c_str()) != 0 && errno != ENOENT) return fail_errno("removing " + root, errno);
  return {};
}

}  // namespace usblease::fence
