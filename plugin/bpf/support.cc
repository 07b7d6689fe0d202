#include "plugin/bpf/support.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "common/fd.h"
#include "plugin/bpf/fence_abi.h"

namespace usblease::fence {
namespace {

Result<std::string> read_line(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(path, errno);
  std::array<char, 1024> text{};
  const ssize_t count = read(fd.get(), text.data(), text.size());
  if (count < 0) return fail_errno(path, errno);
  std::string line(text.data(), static_cast<std::size_t>(count));
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return line;
}

bool names(const std::string& list, std::string_view word) {
  return ("," + list + ",").find("," + std::string(word) + ",") != std::string::npos;
}

}  // namespace

std::string version_directory(const std::string& root) { return root + "/v" + std::to_string(USBLEASE_FENCE_VERSION); }

Result<void> check_support(const std::string& sysfs) {
  const std::string types = sysfs + "/kernel/btf/vmlinux";
  if (access(types.c_str(), R_OK) != 0) {
    return fail(ErrorCode::kUnavailable, "this kernel does not describe its types (" + types +
                                             " is absent), so no BPF program can be attached to it");
  }
  const auto active = read_line(sysfs + "/kernel/security/lsm");
  if (!active) {
    return fail(ErrorCode::kUnavailable, active.error().message +
                                             "; it says whether BPF is among the security modules; mount it: "
                                             "mount -t securityfs none /sys/kernel/security");
  }
  if (!names(*active, "bpf")) {
    return fail(ErrorCode::kUnavailable, "BPF is not among the kernel's security modules (" + *active +
                                             "); start the kernel with lsm=" + *active + ",bpf");
  }
  return {};
}

Result<void> check_loaded(const std::string& root) {
  const std::string link = version_directory(root) + "/link_fence_ioctl";
  if (access(link.c_str(), F_OK) == 0) return {};
  return fail(ErrorCode::kUnavailable,
              "the fence is not loaded; start usblease-fence.service, or: usblease-fence load");
}

}  // namespace usblease::fence
