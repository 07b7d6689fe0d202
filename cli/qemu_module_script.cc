#include "cli/qemu_module_script.h"

#include <glib.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <sstream>

#include "common/glib_ptr.h"

namespace usblease::cli {
namespace {

// "hw-usb-host.so: ours, fits"
std::map<std::string, std::string> parse_lines(const std::string& text) {
  std::map<std::string, std::string> modules;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    const auto colon = line.find(".so: ");
    if (colon != std::string::npos) modules[line.substr(0, colon + 3)] = line.substr(colon + 5);
  }
  return modules;
}

// Ours are blocked while a command runs (interrupt.h); Ctrl-C is for the script too.
void unblock_signals(gpointer /*data*/) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace

Result<ModuleReport> run_module_script(const std::string& script, ModuleAction action, bool capture) {
  if (access(script.c_str(), X_OK) != 0) {
    if (errno == EACCES) return fail(ErrorCode::kDenied, "you may not run " + script);
    return fail(ErrorCode::kNotFound, script + " is not there: install usblease, or run plugin/qemu/install-module");
  }
  std::string option;
  if (action == ModuleAction::kUndo) option = "--undo";
  if (action == ModuleAction::kStatus) option = "--status";
  std::string program = script;
  std::array<char*, 3> arguments = {program.data(), option.empty() ? nullptr : option.data(), nullptr};
  char* said = nullptr;
  int wait_status = 0;
  GErrorOut error;
  const gboolean ran = g_spawn_sync(nullptr, arguments.data(), nullptr, G_SPAWN_CHILD_INHERITS_STDIN, unblock_signals,
                                    nullptr, capture ? &said : nullptr, nullptr, &wait_status, error.out());
  const GChars owner(said);
  if (ran == FALSE) return fail(ErrorCode::kInternal, "cannot run " + script + ": " + error.message());
  ModuleReport report;
  report.ok = g_spawn_check_wait_status(wait_status, nullptr) != FALSE;
  if (said != nullptr) report.modules = parse_lines(said);
  return report;
}

}  // namespace usblease::cli
