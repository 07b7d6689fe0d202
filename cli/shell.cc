#include "cli/shell.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cli/complete.h"
#include "cli/editor.h"
#include "cli/output.h"
#include "cli/run.h"
#include "cli/shell_words.h"

namespace usblease::cli {
namespace {

std::vector<std::string> shell_candidates(const Unfinished& typed, const Globals& globals) {
  auto out = complete(typed.before, typed.word, globals);
  for (const char* word : {"exit", "quit"}) {
    if (typed.before.empty() && std::string_view(word).starts_with(typed.word)) out.emplace_back(word);
  }
  return out;
}

ExitCode run_terminal(const Globals& globals) {
  if (!globals.quiet) print("usblease: shared USB devices. `help` lists the verbs, `quit` ends.\n\n");
  Editor editor(geteuid() == 0 ? "usblease # " : "usblease > ", prepare_history_path(),
                [&](const Unfinished& typed) { return shell_candidates(typed, globals); });
  for (;;) {
    const auto line = editor.read_line();
    if (!line) {
      print("\n");
      return ExitCode::kOk;
    }
    if (run_line(*line, globals).quit) return ExitCode::kOk;
  }
}

struct LineBuffer {
  char* text = nullptr;
  std::size_t size = 0;
  LineBuffer() = default;
  LineBuffer(const LineBuffer&) = delete;
  LineBuffer& operator=(const LineBuffer&) = delete;
  ~LineBuffer() { std::free(text); }  // NOLINT(cppcoreguidelines-owning-memory): getline(3) allocates it
};

ExitCode run_pipe(const Globals& globals) {
  LineBuffer buffer;
  ExitCode last = ExitCode::kOk;
  for (;;) {
    const ssize_t count = getline(&buffer.text, &buffer.size, stdin);
    if (count < 0) return last;
    const auto outcome = run_line(std::string(buffer.text, static_cast<std::size_t>(count)), globals);
    if (outcome.ran) last = outcome.code;
    if (outcome.quit || last == ExitCode::kInterrupted) return last;
  }
}

}  // namespace

ExitCode run_shell(const Globals& globals) {
  const bool terminal = isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
  return terminal ? run_terminal(globals) : run_pipe(globals);
}

}  // namespace usblease::cli
