// A line editor with history and completion, over libedit's own interface (histedit.h): unlike its readline
// emulation it hands the caller's data to callbacks, so nothing here is global.
#pragma once

#include <histedit.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/shell_words.h"
#include "common/glib_ptr.h"

namespace usblease::cli {

class Editor {
 public:
  using Completer = std::function<std::vector<std::string>(const Unfinished&)>;

  // On stdin, stdout and stderr. `history_path` may not exist yet; empty: no history is kept.
  Editor(std::string prompt, std::string history_path, Completer completer);
  // Writes the history, mode 0600. A failure to do so is not worth an error.
  ~Editor();
  Editor(const Editor&) = delete;
  Editor& operator=(const Editor&) = delete;

  // One line without its newline; nullopt at the end of input.
  std::optional<std::string> read_line();

 private:
  static char* on_prompt(EditLine* line) noexcept;
  static unsigned char on_tab(EditLine* line, int key) noexcept;
  static unsigned char on_interrupt(EditLine* line, int key) noexcept;
  static unsigned char on_suspend(EditLine* line, int key) noexcept;
  unsigned char insert_completion();
  void save_history() const;

  std::string prompt_;
  std::string history_path_;
  Completer completer_;
  GPtr<History, history_end> history_;
  GPtr<EditLine, el_end> line_;
};

// What Tab inserts after `typed` for these candidates; empty: nothing more is certain.
std::string completion_suffix(const Unfinished& typed, const std::vector<std::string>& candidates);

// $XDG_STATE_HOME/usblease/history; its directory is made. Empty when that cannot be.
std::string prepare_history_path();

}  // namespace usblease::cli
