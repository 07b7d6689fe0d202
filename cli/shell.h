// usblease without a verb: commands from a person, or line by line from a pipe.
#pragma once

#include "cli/exit_code.h"
#include "cli/verb.h"

namespace usblease::cli {

// Until `quit`, `exit` or the end of input. From a pipe: no prompt, an error does not end it, and the exit code is that
// of the last command. At a terminal the exit code is kOk.
ExitCode run_shell(const Globals& globals);

}  // namespace usblease::cli
