// Runs commands and prints their errors.
#pragma once

#include <string>
#include <vector>

#include "cli/exit_code.h"
#include "cli/options.h"
#include "cli/verb.h"

namespace usblease::cli {

// One command. Ctrl-C ends it with kInterrupted, not the program.
ExitCode run_command(const RawArguments& raw, const Globals& defaults);

struct LineOutcome {
  ExitCode code = ExitCode::kOk;  // of the last command of the line
  bool ran = false;               // false: the line was empty, `code` says nothing
  bool quit = false;              // `quit` or `exit` was among them
};

// A line of the shell: commands parted by ';', one after the other, whatever becomes of each; only Ctrl-C ends them.
LineOutcome run_line(const std::string& line, const Globals& defaults);

}  // namespace usblease::cli
