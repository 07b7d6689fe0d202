// Tables and "name: value" lists as virsh prints them. Every cell is escaped here: nothing that a device or a guest is
// called reaches the terminal raw.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace usblease::cli {

// Columns that `text` (already escaped) takes on a terminal.
std::size_t display_width(std::string_view text);

// `text` (already escaped) cut to at most `columns`, with "..." when something is missing.
std::string cut_to_width(std::string_view text, std::size_t columns);

// escape_text(), but an empty text is "-" so that a column is never blank.
std::string cell(std::string_view untrusted);

// A message of the daemon on one line. It may have been escaped already, so backslashes stay as they are.
std::string printable_message(std::string_view message);

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  // As many cells as the header has; raw, not escaped.
  void add(const std::vector<std::string>& cells);
  // With header and dashes, or (for -q) the rows alone. Ends with a newline unless it is empty.
  [[nodiscard]] std::string format(bool with_header) const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;  // escaped
};

// "Name:   value" lines, values aligned.
class Facts {
 public:
  // `value` is raw, not escaped.
  void add(std::string name, std::string_view value);
  // Left out when `value` is empty.
  void add_if(std::string name, std::string_view value);
  [[nodiscard]] std::string format() const;

 private:
  std::vector<std::pair<std::string, std::string>> lines_;
};

}  // namespace usblease::cli
