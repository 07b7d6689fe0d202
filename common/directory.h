// What lies in a directory.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace usblease {

// The names in it without those that begin with a dot, in no order; at most `most`. None when it cannot be read.
std::vector<std::string> list_names(const std::string& path, std::size_t most);

}  // namespace usblease
