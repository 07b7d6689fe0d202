// usblease: the command line of usbleased.
#include <google/protobuf/stubs/logging.h>

#include <clocale>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "cli/complete.h"
#include "cli/output.h"
#include "cli/run.h"
#include "cli/shell.h"

namespace usblease::cli {
namespace {

// usblease --complete [WORD…] LAST: what LAST can become, one a line. For packaging/completion/usblease.bash.
ExitCode print_completion(std::vector<std::string> words) {
  const std::string last = words.empty() ? "" : words.back();
  if (!words.empty()) words.pop_back();
  for (const auto& candidate : complete(words, last, {})) print(candidate + "\n");
  return flush_output() ? ExitCode::kOk : ExitCode::kFailed;
}

// `usblease 'list; status'`: one argument that is more than a word is a line of the shell, as with virsh.
bool is_line(const RawArguments& raw) {
  return raw.words.size() == 1 && raw.words[0].find_first_of(" ;\t\n") != std::string::npos;
}

ExitCode fail_with(const Error& error) {
  print_error(error);
  return exit_code_for(error.code);
}

ExitCode run(std::vector<std::string> arguments) {
  if (!arguments.empty() && arguments[0] == "--complete") {
    arguments.erase(arguments.begin());
    return print_completion(std::move(arguments));
  }
  const auto raw = read_arguments(arguments);
  if (!raw) return fail_with(raw.error());
  const bool asks = raw->options.contains(OptionId::kHelp) || raw->options.contains(OptionId::kVersion);
  if (asks || (!raw->words.empty() && !is_line(*raw))) return run_command(*raw, {});
  for (const auto& [id, value] : raw->options) {
    if (!option_spec(id).global) {
      return fail_with({ErrorCode::kBadInput, std::string("--") + option_spec(id).long_name +
                                                  " belongs to a verb, and none is given; see `usblease help`"});
    }
  }
  const auto globals = read_globals(*raw, {});
  if (!globals) return fail_with(globals.error());
  return raw->words.empty() ? run_shell(*globals) : run_line(raw->words[0], *globals).code;
}

}  // namespace
}  // namespace usblease::cli

int main(int argc, char** argv) {
  // For libedit and for names that are not ASCII; messages stay in one language.
  std::setlocale(LC_CTYPE, "");
  // protobuf would write to stderr about bytes that do not parse; that is our sentence to say.
  google::protobuf::SetLogHandler(nullptr);
  return static_cast<int>(usblease::cli::run(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc)));
}
