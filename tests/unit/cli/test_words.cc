// Cutting lines of the shell into words.
#include "cli/editor.h"
#include "cli/shell_words.h"
#include "tests/unit/cli/cases.h"

namespace {

using namespace usblease;
using namespace usblease::cli;

// "list|-q / info|dongle"
std::string shown(const std::string& line) {
  const auto commands = split_line(line);
  if (!commands) return "error: " + commands.error().message;
  std::string out;
  for (const auto& words : *commands) {
    out += out.empty() ? "" : " / ";
    for (std::size_t i = 0; i < words.size(); ++i) out += (i == 0 ? "" : "|") + words[i];
  }
  return out;
}

START_TEST(lines_are_cut_as_virsh_cuts_them) {
  check_text(shown(""), "");
  check_text(shown("  \t\n"), "");
  check_text(shown("list"), "list");
  check_text(shown("list -q;info dongle ; ;status\n"), "list|-q / info|dongle / status");
  check_text(shown("a 'b c' d"), "a|b c|d");
  check_text(shown("a \"b;c\" d"), "a|b;c|d");
  check_text(shown("a 'it'\\''s' \"it's\""), "a|it's|it's");
  check_text(shown("a b\\ c \\;d \\\\"), "a|b c|;d|\\");
  check_text(shown("a 'b\\c' \"b\\\"c\""), "a|b\\c|b\"c");
  check_text(shown("a '' \"\" b"), "a|||b");
  check_text(shown("a#b # the rest; of this 'line"), "a#b");
  check_text(shown("# nothing"), "");
  check_text(shown("a\nb"), "a / b");
  check_text(shown("gr\xC3\xBC\xC3\x9F dich"), "gr\xC3\xBC\xC3\x9F|dich");
}
END_TEST

START_TEST(unfinished_and_oversized_lines_are_refused) {
  ck_assert_ptr_nonnull(strstr(shown("a 'b").c_str(), "error: the quote '"));
  ck_assert_ptr_nonnull(strstr(shown("a \"b'").c_str(), "error: the quote \""));
  ck_assert_ptr_nonnull(strstr(shown("a \\").c_str(), "backslash"));
  ck_assert_ptr_nonnull(strstr(shown(std::string(kLineMax + 1, 'x')).c_str(), "at most 65536 bytes"));
  ck_assert_ptr_nonnull(strstr(shown(std::string("a\0b", 3)).c_str(), "NUL"));
  ck_assert(split_line(std::string(kLineMax, 'x')).has_value());
}
END_TEST

START_TEST(quoted_words_come_back) {
  for (const std::string word : {"a", "my guest", "a'b", "a\"b", "a\\b", "a;b", "#a", "", "\tx"}) {
    check_text(shown("info " + quote_word(word)), "info|" + word);
  }
}
END_TEST

START_TEST(completion_inserts_what_is_certain) {
  const auto suffix = [](const std::string& typed, const std::vector<std::string>& candidates) {
    return completion_suffix(split_unfinished(typed), candidates);
  };
  check_text(suffix("info do", {"dongle"}), "ngle ");
  check_text(suffix("info d", {"dongle", "donkey"}), "on");
  check_text(suffix("info don", {"dongle", "donkey"}), "");
  check_text(suffix("list; attach my", {"my guest"}), "\\ guest ");
  check_text(suffix("attach 'my", {"my guest"}), " guest' ");
  check_text(suffix("attach my\\ g", {"my guest"}), "uest ");
  check_text(suffix("info dongle", {"dongle"}), " ");
  // U+00FC and U+00F6 share their first byte: half a character is not inserted.
  check_text(suffix("attach g", {"g\xC3\xBC", "g\xC3\xB6"}), "");
  check_text(suffix("x", {}), "");
}
END_TEST

}  // namespace

TCase* words_cases() {
  TCase* cases = tcase_create("words");
  tcase_add_test(cases, lines_are_cut_as_virsh_cuts_them);
  tcase_add_test(cases, unfinished_and_oversized_lines_are_refused);
  tcase_add_test(cases, quoted_words_come_back);
  tcase_add_test(cases, completion_inserts_what_is_certain);
  return cases;
}
