// Runs a Check suite; the exit status says whether all passed.
#pragma once

#include <check.h>
#undef fail  // a macro of Check that is our function too

#include <cstdlib>
#include <initializer_list>

inline int run_suite(const char* name, std::initializer_list<const TTest*> tests, double timeout_s = 240) {
  Suite* suite = suite_create(name);
  TCase* tcase = tcase_create(name);
  tcase_set_timeout(tcase, timeout_s);
  for (const TTest* test : tests) tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  SRunner* runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
