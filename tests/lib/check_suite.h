// Check, made fit for C++: its macro `fail` would hide usblease::fail, and every suite's main is the same.
#pragma once

#include <check.h>
#undef fail

#include <cstdlib>
#include <initializer_list>

namespace usblease::test {

// Runs `tests` (made by START_TEST) as the suite `name`; the exit status for main. 0 leaves Check's own time limit.
inline int run_suite(const char* name, std::initializer_list<const TTest*> tests, double timeout_s = 0) {
  Suite* const suite = suite_create(name);
  TCase* const cases = tcase_create(name);
  if (timeout_s > 0) tcase_set_timeout(cases, timeout_s);
  for (const TTest* test : tests) tcase_add_test(cases, test);
  suite_add_tcase(suite, cases);
  SRunner* const runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace usblease::test
