#include "common/directory.h"

#include <dirent.h>

#include "common/glib_ptr.h"

namespace usblease {

std::vector<std::string> list_names(const std::string& path, std::size_t most) {
  std::vector<std::string> names;
  const GPtr<DIR, closedir> directory(opendir(path.c_str()));
  if (directory == nullptr) return names;
  while (names.size() < most) {
    const dirent* entry = readdir(directory.get());
    if (entry == nullptr) break;
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  return names;
}

}  // namespace usblease
