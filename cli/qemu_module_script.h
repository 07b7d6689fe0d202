// install-module (plugin/qemu), which puts our modules into this host's QEMU: run as a child, in the caller's terminal.
#pragma once

#include <map>
#include <string>

#include "common/error.h"

namespace usblease::cli {

enum class ModuleAction : std::uint8_t { kInstall, kUndo, kStatus };

struct ModuleReport {
  bool ok = false;                             // the script succeeded; for kStatus: ours are installed and fit
  std::map<std::string, std::string> modules;  // what it said of each, when it was captured
};

// Runs `script` to its end, which for kInstall may be minutes away. Its words go to our stdout and stderr; with
// `capture` only those on stderr, and what it says of the modules is in the report. kNotFound: there is no such script;
// kDenied: it is not ours to run.
Result<ModuleReport> run_module_script(const std::string& script, ModuleAction action, bool capture);

}  // namespace usblease::cli
