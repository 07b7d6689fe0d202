#include "plugin/bpf/pinned_map.h"

#include <bpf/bpf.h>

#include <cerrno>

#include "plugin/bpf/support.h"

namespace usblease::fence {

Result<UniqueFd> open_map(const std::string& root, const char* name) {
  const std::string path = version_directory(root) + "/" + name;
  UniqueFd map(bpf_obj_get(path.c_str()));
  if (map) return map;
  if (errno == ENOENT) {
    return fail(ErrorCode::kNotFound, "the fence is not loaded (" + path + " is absent); load it: usblease-fence load");
  }
  return fail_errno(path, errno);
}

}  // namespace usblease::fence
