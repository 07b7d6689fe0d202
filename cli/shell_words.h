// One line of the shell, cut into commands and words by virsh's rules. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::cli {

inline constexpr std::size_t kLineMax = 64 * 1024;

using Words = std::vector<std::string>;

// Blanks part words, ';' and a newline part commands. '…' and "…" keep both; a backslash keeps the next character,
// but not inside '…'. A '#' at the beginning of a word makes the rest of the line a comment. Empty commands vanish.
// kBadInput: a quote that does not end, a backslash at the end, a line over kLineMax, or a NUL byte.
Result<std::vector<Words>> split_line(std::string_view line);

// What stands before the cursor: the whole words of the last command, and the word that is being typed.
struct Unfinished {
  Words before;
  std::string word;
  char quote = 0;  // the quote that is still open, 0: none
};
Unfinished split_unfinished(std::string_view before_cursor);

// `word` so that split_line() reads it back as one word.
std::string quote_word(std::string_view word);

}  // namespace usblease::cli
