// Processes that descend from one another, and cgroups of them: who they are, and how all of them end.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace usblease::cli {

// Children of the thread that is `pid`'s main one: of a process of one thread all, those that it inherited too. Empty
// as well when there is no such process.
std::vector<pid_t> children_of(pid_t pid);

bool is_populated(const std::string& cgroup);

// SIGKILL for all that runs in the cgroup (v2) in this directory. True: nothing does any more.
bool kill_cgroup(const std::string& directory);

// SIGKILL for all that descends from the process. True: nothing that still runs does. What one kill leaves to another
// parent is found by the next call.
bool kill_descendants(pid_t pid);

}  // namespace usblease::cli
