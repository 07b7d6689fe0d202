// What may stand next on a command line: verbs, options, and the names that the daemon knows. For the shell and,
// through the hidden `usblease --complete`, for bash.
#pragma once

#include <string>
#include <vector>

#include "cli/verb.h"

namespace usblease::cli {

// `before`: the whole words before the one being typed, without the program's name; `word`: that one, maybe empty.
// Only candidates that begin with `word`. The daemon gets a second; when it does not answer there are just fewer.
std::vector<std::string> complete(const std::vector<std::string>& before, const std::string& word,
                                  const Globals& defaults);

}  // namespace usblease::cli
