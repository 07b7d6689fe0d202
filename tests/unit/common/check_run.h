// What every Check program of tests/unit/common and tests/unit/api begins and ends with.
#pragma once

#include <check.h>
// An old macro of Check with the name of common/error.h's function and of a member of std::ios.
#undef fail

#include <cstdlib>
#include <string>

#include "common/error.h"
#include "common/sanitized.h"

namespace usblease::test {

// The sanitizers themselves need descriptors: a test that takes all of them away cannot run under them.
inline constexpr bool kSanitized = USBLEASE_SANITIZED == 1;

inline int run_suite(Suite* suite) {
  SRunner* const runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

// Empty when the two are the same.
inline std::string difference(const char* what, const std::string& actual, const std::string& expected) {
  if (actual == expected) return "";
  return std::string(what) + " is \"" + actual + "\", expected \"" + expected + "\"";
}

// A directory of its own in /tmp that everybody may enter; removed with what is directly in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  // Returns the path of a file with that content.
  [[nodiscard]] std::string write(const std::string& name, const std::string& content) const;

 private:
  std::string path_;
};

}  // namespace usblease::test

#define ck_assert_ok(result)                                                                 \
  do {                                                                                       \
    if (!(result)) ck_abort_msg("%s failed: %s", #result, (result).error().message.c_str()); \
  } while (false)

#define ck_assert_fails(result, expected_code, part)                                                     \
  do {                                                                                                   \
    if (result) ck_abort_msg("%s succeeded", #result);                                                   \
    ck_assert_msg((result).error().code == (expected_code), "%s: wrong code, message: %s", #result,      \
                  (result).error().message.c_str());                                                     \
    ck_assert_msg((result).error().message.find(part) != std::string::npos, "expected \"%s\" in \"%s\"", \
                  std::string(part).c_str(), (result).error().message.c_str());                          \
  } while (false)

#define ck_assert_text_eq(actual, expected)                                                      \
  do {                                                                                           \
    const std::string ck_difference = usblease::test::difference(#actual, (actual), (expected)); \
    ck_assert_msg(ck_difference.empty(), "%s", ck_difference.c_str());                           \
  } while (false)
