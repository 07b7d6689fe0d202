#include "cli/table.h"

#include <glib.h>

#include <algorithm>
#include <cstdlib>

#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::size_t kColumnGap = 3;

// Columns of one character; advances `at` past it. Invalid bytes cannot be here after escaping, but count as one.
std::size_t width_of_next(const char** at, const char* end) {
  const gunichar c = g_utf8_get_char_validated(*at, end - *at);
  if (c == static_cast<gunichar>(-1) || c == static_cast<gunichar>(-2)) {
    ++*at;
    return 1;
  }
  *at = g_utf8_next_char(*at);
  if (g_unichar_iszerowidth(c) != FALSE) return 0;
  return g_unichar_iswide(c) != FALSE ? 2 : 1;
}

void append_row(std::string* out, const std::vector<std::string>& cells, const std::vector<std::size_t>& widths) {
  for (std::size_t i = 0; i < cells.size(); ++i) {
    *out += i == 0 ? std::string(1, ' ') : std::string();
    *out += cells[i];
    if (i + 1 < cells.size()) out->append(widths[i] - display_width(cells[i]) + kColumnGap, ' ');
  }
  *out += '\n';
}

}  // namespace

std::size_t display_width(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  std::size_t columns = 0;
  while (at < end) columns += width_of_next(&at, end);
  return columns;
}

std::string cut_to_width(std::string_view text, std::size_t columns) {
  if (display_width(text) <= columns) return std::string(text);
  constexpr std::string_view kDots = "...";
  const std::size_t room = columns > kDots.size() ? columns - kDots.size() : 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  std::size_t used = 0;
  while (at < end) {
    const char* next = at;
    used += width_of_next(&next, end);
    if (used > room) break;
    at = next;
  }
  return std::string(text.data(), at).append(kDots.substr(0, std::min(columns, kDots.size())));
}

std::string cell(std::string_view untrusted) { return untrusted.empty() ? "-" : escape_text(untrusted); }

std::string printable_message(std::string_view message) {
  std::string out;
  for (;;) {
    const std::size_t backslash = message.find('\\');
    out += escape_text(message.substr(0, backslash));
    if (backslash == std::string_view::npos) return out;
    out += '\\';
    message.remove_prefix(backslash + 1);
  }
}

void Table::add(const std::vector<std::string>& cells) {
  if (cells.size() != header_.size()) std::abort();  // a mistake in our own verb
  std::vector<std::string> escaped;
  escaped.reserve(cells.size());
  for (const auto& text : cells) escaped.push_back(cell(text));
  rows_.push_back(std::move(escaped));
}

std::string Table::format(bool with_header) const {
  std::vector<std::size_t> widths(header_.size(), 0);
  for (std::size_t i = 0; i < header_.size(); ++i) {
    if (with_header) widths[i] = display_width(header_[i]);
    for (const auto& row : rows_) widths[i] = std::max(widths[i], display_width(row[i]));
  }
  std::string out;
  if (with_header) {
    append_row(&out, header_, widths);
    std::size_t total = kColumnGap * (header_.size() - 1) + 2;
    for (const std::size_t width : widths) total += width;
    out.append(total, '-') += '\n';
  }
  for (const auto& row : rows_) append_row(&out, row, widths);
  return out;
}

void Facts::add(std::string name, std::string_view value) { lines_.emplace_back(std::move(name), cell(value)); }

void Facts::add_if(std::string name, std::string_view value) {
  if (!value.empty()) add(std::move(name), value);
}

std::string Facts::format() const {
  std::size_t widest = 0;
  for (const auto& [name, value] : lines_) widest = std::max(widest, display_width(name));
  std::string out;
  for (const auto& [name, value] : lines_) {
    out.append(name).append(":").append(widest - display_width(name) + 2, ' ').append(value).append("\n");
  }
  return out;
}

}  // namespace usblease::cli
