#include <google/protobuf/struct.pb.h>

#include "cli/output.h"
#include "cli/qemu_module_script.h"

namespace usblease::cli {
namespace {

constexpr const char* kScript = USBLEASE_LIBEXECDIR "/qemu/install-module";

Result<void> print_report(const ModuleReport& report) {
  google::protobuf::Struct out;
  (*out.mutable_fields())["ok"].set_bool_value(report.ok);
  auto* const modules = (*out.mutable_fields())["modules"].mutable_struct_value();
  for (const auto& [name, state] : report.modules) (*modules->mutable_fields())[name].set_string_value(state);
  return print_json(out);
}

}  // namespace

Result<void> verb_host_install_qemu_module(const Invocation& invocation, Context& context) {
  ModuleAction action = ModuleAction::kInstall;
  if (invocation.undo) action = ModuleAction::kUndo;
  if (invocation.status) action = ModuleAction::kStatus;
  const bool asked = action == ModuleAction::kStatus;  // whatever the answer is, it is one
  // What was printed before must be out before the script's words.
  if (auto flushed = flush_output(); !flushed) return flushed;
  const bool capture = invocation.globals.json || (invocation.globals.quiet && !asked);
  const auto report = run_module_script(kScript, action, capture);
  if (!report) return tl::unexpected(report.error());
  if (!report->ok && !asked) {
    (void)context.interrupt.wait_readable(-1, 0);  // Ctrl-C, which the script had as well
    return fail(ErrorCode::kInternal, "the modules in QEMU could not be changed; install-module has said why");
  }
  if (invocation.globals.json) return print_report(*report);
  if (action == ModuleAction::kInstall)
    print_done(invocation.globals, "guests that start from now on are stopped at their deadline by QEMU itself");
  if (action == ModuleAction::kUndo)
    print_done(invocation.globals, "QEMU has its own modules again; guests that run keep what they have loaded");
  return {};
}

}  // namespace usblease::cli
