#include "cli/shell_words.h"

#include <utility>

namespace usblease::cli {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

class Splitter {
 public:
  void feed(std::string_view line) {
    for (const char c : line) step(c);
  }

  [[nodiscard]] char open_quote() const { return quote_; }
  [[nodiscard]] bool open_escape() const { return escaped_; }
  [[nodiscard]] bool in_word() const { return in_word_; }

  void end_word() {
    if (!in_word_) return;
    command_.push_back(std::exchange(word_, {}));
    in_word_ = false;
  }
  void end_command() {
    end_word();
    if (!command_.empty()) commands_.push_back(std::exchange(command_, {}));
  }

  std::vector<Words> take_commands() { return std::move(commands_); }
  Words take_command() { return std::move(command_); }
  std::string take_word() { return std::move(word_); }

 private:
  void add(char c) {
    word_ += c;
    in_word_ = true;
  }

  void step(char c) {
    if (comment_) {
      comment_ = c != '\n';
    } else if (escaped_) {
      escaped_ = false;
      add(c);
    } else if (c == '\\' && quote_ != '\'') {
      escaped_ = true;
      in_word_ = true;
    } else if (quote_ != 0) {
      if (c == quote_) {
        quote_ = 0;
      } else {
        add(c);
      }
    } else {
      step_outside_quotes(c);
    }
  }

  void step_outside_quotes(char c) {
    if (c == '\'' || c == '"') {
      quote_ = c;
      in_word_ = true;
    } else if (is_blank(c)) {
      end_word();
    } else if (c == ';' || c == '\n') {
      end_command();
    } else if (c == '#' && !in_word_) {
      comment_ = true;
    } else {
      add(c);
    }
  }

  std::vector<Words> commands_;
  Words command_;
  std::string word_;
  bool in_word_ = false;  // '' is a word too
  bool escaped_ = false;
  bool comment_ = false;
  char quote_ = 0;
};

}  // namespace

Result<std::vector<Words>> split_line(std::string_view line) {
  if (line.size() > kLineMax) {
    return fail(ErrorCode::kBadInput, "a command line is at most " + std::to_string(kLineMax) + " bytes long");
  }
  if (line.find('\0') != std::string_view::npos) {
    return fail(ErrorCode::kBadInput, "a command line must not hold a NUL byte");
  }
  Splitter splitter;
  splitter.feed(line);
  if (splitter.open_quote() != 0) {
    return fail(ErrorCode::kBadInput,
                std::string("the quote ") + splitter.open_quote() + " does not end on this line; close it");
  }
  if (splitter.open_escape()) {
    return fail(ErrorCode::kBadInput, "the line ends with a backslash; write \\\\ for a backslash");
  }
  splitter.end_command();
  return splitter.take_commands();
}

Unfinished split_unfinished(std::string_view before_cursor) {
  Splitter splitter;
  splitter.feed(before_cursor.substr(0, kLineMax));
  Unfinished out;
  out.quote = splitter.open_quote();
  out.word = splitter.take_word();
  out.before = splitter.take_command();
  return out;
}

std::string quote_word(std::string_view word) {
  if (word.empty()) return "''";
  std::string out;
  for (const char c : word) {
    if (is_blank(c) || std::string_view("'\"\\;#").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace usblease::cli
