// Check, without its old macro that takes the name of common/error.h's fail() and of std::ios::fail().
#pragma once

#include <check.h>

#include <string>

#undef fail

namespace usblease::store_test {

// ck_assert_str_eq keeps a pointer into a temporary string that is gone when it compares.
inline void expect_text(const std::string& actual, const std::string& expected) {
  ck_assert_msg(actual == expected, "\"%s\" instead of \"%s\"", actual.c_str(), expected.c_str());
}

}  // namespace usblease::store_test
