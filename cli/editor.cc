#include "cli/editor.h"

#include <fcntl.h>
#include <glib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <utility>

#include "cli/table.h"
#include "common/fd.h"

namespace usblease::cli {
namespace {

constexpr int kHistoryMax = 1000;

Editor* editor_of(EditLine* line) {
  void* data = nullptr;
  el_get(line, EL_CLIENTDATA, &data);
  return static_cast<Editor*>(data);
}

void list_candidates(const std::vector<std::string>& candidates) {
  winsize size{};
  const std::size_t columns =
      ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : std::size_t{80};
  std::size_t widest = 1;
  for (const auto& candidate : candidates) widest = std::max(widest, display_width(candidate) + 2);
  const std::size_t per_row = std::max<std::size_t>(1, columns / widest);
  std::string out = "\n";
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const bool last_of_row = (i + 1) % per_row == 0 || i + 1 == candidates.size();
    out += candidates[i];
    out += last_of_row ? "\n" : std::string(widest - display_width(candidates[i]), ' ');
  }
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
}

std::string common_prefix(const std::vector<std::string>& candidates) {
  std::string prefix = candidates.front();
  for (const auto& candidate : candidates) {
    const auto [end, other] = std::mismatch(prefix.begin(), prefix.end(), candidate.begin(), candidate.end());
    prefix.erase(end, prefix.end());
  }
  // Names may part in the middle of a character.
  const gchar* valid_end = nullptr;
  g_utf8_validate(prefix.data(), static_cast<gssize>(prefix.size()), &valid_end);
  prefix.resize(static_cast<std::size_t>(valid_end - prefix.data()));
  return prefix;
}

}  // namespace

std::string completion_suffix(const Unfinished& typed, const std::vector<std::string>& candidates) {
  if (candidates.empty()) return "";
  const std::string prefix = common_prefix(candidates);
  const std::string rest = prefix.size() > typed.word.size() ? prefix.substr(typed.word.size()) : "";
  std::string out = typed.quote != 0 || rest.empty() ? rest : quote_word(rest);
  if (candidates.size() == 1) {
    if (typed.quote != 0) out += typed.quote;
    out += ' ';
  }
  return out;
}

Editor::Editor(std::string prompt, std::string history_path, Completer completer)
    : prompt_(std::move(prompt)),
      history_path_(std::move(history_path)),
      completer_(std::move(completer)),
      history_(history_init()),
      line_(el_init("usblease", stdin, stdout, stderr)) {
  if (!line_ || !history_) return;
  HistEvent event{};
  history(history_.get(), &event, H_SETSIZE, kHistoryMax);
  history(history_.get(), &event, H_SETUNIQUE, 1);
  if (!history_path_.empty()) history(history_.get(), &event, H_LOAD, history_path_.c_str());
  EditLine* line = line_.get();
  el_set(line, EL_CLIENTDATA, this);
  el_set(line, EL_EDITOR, "emacs");
  el_set(line, EL_SIGNAL, 1);
  el_set(line, EL_PROMPT, on_prompt);
  el_set(line, EL_HIST, history, history_.get());
  // Wide, because el_set() would copy the names and never free them.
  el_wset(line, EL_ADDFN, L"usblease-complete", L"complete the word", on_tab);
  el_wset(line, EL_ADDFN, L"usblease-drop", L"drop the line", on_interrupt);
  el_wset(line, EL_ADDFN, L"usblease-suspend", L"stop as a job of the shell", on_suspend);
  el_set(line, EL_BIND, "^I", "usblease-complete", nullptr);
  el_set(line, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  // While a line is edited Ctrl-C is a key: it drops the line, and not the program. So is Ctrl-Z then.
  el_set(line, EL_SETTY, "-d", "-isig", nullptr);
  el_set(line, EL_BIND, "^C", "usblease-drop", nullptr);
  el_set(line, EL_BIND, "^Z", "usblease-suspend", nullptr);
  el_source(line, nullptr);
}

Editor::~Editor() { save_history(); }

char* Editor::on_prompt(EditLine* line) noexcept { return editor_of(line)->prompt_.data(); }

unsigned char Editor::on_tab(EditLine* line, int /*key*/) noexcept { return editor_of(line)->insert_completion(); }

unsigned char Editor::on_interrupt(EditLine* line, int /*key*/) noexcept {
  const LineInfoW* info = el_wline(line);
  const auto length = static_cast<int>(info->lastchar - info->buffer);
  el_cursor(line, static_cast<int>(info->lastchar - info->cursor));
  el_deletestr(line, length);
  std::fputs("^C\n", stdout);
  std::fflush(stdout);
  return CC_REDISPLAY;
}

// libedit's own handler (EL_SIGNAL) gives the terminal back before the process stops, and takes it after.
unsigned char Editor::on_suspend(EditLine* /*line*/, int /*key*/) noexcept {
  std::raise(SIGTSTP);
  return CC_REFRESH;
}

unsigned char Editor::insert_completion() {
  const LineInfo* info = el_line(line_.get());
  const Unfinished typed = split_unfinished({info->buffer, static_cast<std::size_t>(info->cursor - info->buffer)});
  const auto candidates = completer_(typed);
  if (candidates.empty()) return CC_REFRESH_BEEP;
  const std::string suffix = completion_suffix(typed, candidates);
  if (!suffix.empty()) return el_insertstr(line_.get(), suffix.c_str()) == 0 ? CC_REFRESH : CC_REFRESH_BEEP;
  list_candidates(candidates);
  return CC_REDISPLAY;
}

std::optional<std::string> Editor::read_line() {
  if (!line_ || !history_) return std::nullopt;
  int count = 0;
  const char* text = el_gets(line_.get(), &count);
  if (text == nullptr || count <= 0) return std::nullopt;
  std::string out(text, static_cast<std::size_t>(count));
  while (!out.empty() && (out.back() == '\n' || out.back() == '\r')) out.pop_back();
  if (out.find_first_not_of(" \t") != std::string::npos) {
    HistEvent event{};
    history(history_.get(), &event, H_ENTER, out.c_str());
  }
  return out;
}

// Whole or not at all: a second shell may read the file at this moment.
void Editor::save_history() const {
  if (history_path_.empty() || !history_) return;
  std::string temporary = history_path_ + ".XXXXXX";
  UniqueFd fd(mkostemp(temporary.data(), O_CLOEXEC));  // 0600
  if (!fd) return;
  FILE* file = fdopen(fd.get(), "w");
  if (file == nullptr) {
    unlink(temporary.c_str());
    return;
  }
  static_cast<void>(fd.release());
  HistEvent event{};
  const bool written = history(history_.get(), &event, H_SAVE_FP, file) >= 0;
  const bool closed = std::fclose(file) == 0;  // NOLINT(cppcoreguidelines-owning-memory): the result is needed
  if (!written || !closed || std::rename(temporary.c_str(), history_path_.c_str()) != 0) unlink(temporary.c_str());
}

std::string prepare_history_path() {
  const GChars directory(g_build_filename(g_get_user_state_dir(), "usblease", nullptr));
  if (g_mkdir_with_parents(directory.get(), 0700) != 0) return "";
  return std::string(directory.get()) + "/history";
}

}  // namespace usblease::cli
