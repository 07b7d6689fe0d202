// The command line, from its pure parts to the real program against a scripted daemon.
#include "tests/unit/cli/cases.h"

int main() {
  Suite* suite = suite_create("cli");
  suite_add_tcase(suite, words_cases());
  suite_add_tcase(suite, command_line_cases());
  suite_add_tcase(suite, module_script_cases());
  suite_add_tcase(suite, text_cases());
  suite_add_tcase(suite, verb_cases());
  suite_add_tcase(suite, cluster_cases());
  suite_add_tcase(suite, trouble_cases());
  suite_add_tcase(suite, attach_cases());
  suite_add_tcase(suite, shell_cases());
  SRunner* runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? 0 : 1;
}
