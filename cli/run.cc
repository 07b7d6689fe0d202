#include "cli/run.h"

#include "cli/command_line.h"
#include "cli/help.h"
#include "cli/output.h"
#include "cli/shell_words.h"

namespace usblease::cli {
namespace {

Result<void> dispatch(const Invocation& invocation, Context& context) {
  if (invocation.help) {
    print(invocation.verb != nullptr ? help_on(*invocation.verb) : general_help());
    return {};
  }
  if (invocation.version) return verb_version(invocation, context);
  return invocation.verb->run(invocation, context);
}

ExitCode report(const Error& error) {
  print_error(error);
  return exit_code_for(error.code);
}

}  // namespace

ExitCode run_command(const RawArguments& raw, const Globals& defaults) {
  const auto invocation = check_command(raw, defaults);
  if (!invocation) return report(invocation.error());
  Interrupt interrupt;
  Context context{invocation->globals, interrupt};
  auto done = dispatch(*invocation, context);
  // What was printed before an error must be out before the error's line.
  const auto flushed = flush_output();
  if (done) done = flushed;
  if (!done) print_error(done.error());
  if (context.exit_code) return static_cast<ExitCode>(*context.exit_code);
  if (done) return ExitCode::kOk;
  return interrupt.caught() ? ExitCode::kInterrupted : exit_code_for(done.error().code);
}

LineOutcome run_line(const std::string& line, const Globals& defaults) {
  const auto commands = split_line(line);
  if (!commands) return {.code = report(commands.error()), .ran = true};
  LineOutcome out;
  for (const auto& words : *commands) {
    if (words.size() == 1 && (words[0] == "quit" || words[0] == "exit")) {
      out.quit = true;
      break;
    }
    const auto raw = read_arguments(words);
    out.code = raw ? run_command(*raw, defaults) : report(raw.error());
    out.ran = true;
    if (out.code == ExitCode::kInterrupted) break;
  }
  return out;
}

}  // namespace usblease::cli
