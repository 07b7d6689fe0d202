// The test cases of the command line, one function a file.
#pragma once

#include <check.h>
#undef fail  // an old macro of Check; ours is a function

#include <cstring>
#include <string>

inline std::string text_difference(const std::string& actual, const std::string& expected) {
  return actual == expected ? "" : "got:\n" + actual + "\nbut expected:\n" + expected;
}

// Keeps what it compares: Check's own macro would hold on to pointers into temporaries.
#define check_text(actual, expected)                                                            \
  do {                                                                                          \
    const std::string difference = text_difference(std::string(actual), std::string(expected)); \
    ck_assert_msg(difference.empty(), "%s", difference.c_str());                                \
  } while (false)

TCase* words_cases();
TCase* command_line_cases();
TCase* module_script_cases();
TCase* text_cases();
TCase* verb_cases();
TCase* cluster_cases();
TCase* trouble_cases();
TCase* attach_cases();
TCase* shell_cases();
