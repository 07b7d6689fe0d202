#include "cli/process_tree.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "common/fd.h"

namespace usblease::cli {
namespace {

// Waits for nothing but to be reaped.
bool is_zombie(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(stat, line);
  const std::size_t name_end = line.rfind(") ");  // the name may hold anything
  return name_end == std::string::npos || line.compare(name_end + 2, 1, "Z") == 0;
}

}  // namespace

std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> out;
  const std::string number = std::to_string(pid);
  std::ifstream list("/proc/" + number + "/task/" + number + "/children");
  for (pid_t child = 0; list >> child;) out.push_back(child);
  return out;
}

// One that is not there was removed, which only an empty one can be.
bool is_populated(const std::string& cgroup) {
  std::ifstream events(cgroup + "/cgroup.events");
  if (!events && access(cgroup.c_str(), F_OK) != 0) return false;
  for (std::string line; std::getline(events, line);) {
    if (line == "populated 0") return false;
  }
  return true;
}

bool kill_cgroup(const std::string& directory) {
  const UniqueFd fd(open((directory + "/cgroup.kill").c_str(), O_WRONLY | O_CLOEXEC));
  if (fd) (void)!write(fd.get(), "1", 1);
  return !is_populated(directory);
}

bool kill_descendants(pid_t pid) {
  bool none = true;
  for (const pid_t child : children_of(pid)) {
    none = kill_descendants(child) && none;
    if (is_zombie(child)) continue;
    none = false;
    (void)kill(child, SIGKILL);
  }
  return none;
}

}  // namespace usblease::cli
