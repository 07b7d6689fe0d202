// The clock, and the refusal of a time namespace.
#include <sys/wait.h>
#include <unistd.h>

#include "common/boottime.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

START_TEST(time_namespaces) {
  const test::TemporaryDirectory directory;
  const auto check = [&](const char* content) { return check_time_namespace(directory.write("offsets", content)); };
  ck_assert_ok(check("monotonic           0         0\nboottime            0         0\n"));
  // Only BOOTTIME decides anything here.
  ck_assert_ok(check("monotonic       86400         0\nboottime            0         0\n"));
  ck_assert_fails(check("monotonic           0         0\nboottime       604800         0\n"), ErrorCode::kRefused,
                  "shifted by 604800 s 0 ns");
  ck_assert_fails(check("monotonic           0         0\nboottime          -10         0\n"), ErrorCode::kRefused,
                  "shifted by -10 s");
  ck_assert_fails(check("monotonic           0         0\nboottime            0         1\n"), ErrorCode::kRefused,
                  "shifted by 0 s 1 ns");
  ck_assert_fails(check(""), ErrorCode::kInternal, "does not name the clock");
  ck_assert_fails(check("something else"), ErrorCode::kInternal, "does not name the clock");
  ck_assert_ok(check_time_namespace(directory.file("absent")));
  ck_assert_ok(check_time_namespace());
}
END_TEST

START_TEST(clocks_go_forward) {
  const std::uint64_t before_ns = boottime_now_ns();
  ck_assert_uint_gt(before_ns, 0);
  ck_assert_uint_ge(boottime_now_ns(), before_ns);
  ck_assert_uint_gt(wall_clock_unix_s(), 1'600'000'000);
}
END_TEST

START_TEST(boot_id) {
  const auto id = read_boot_id();
  ck_assert_ok(id);
  ck_assert_uint_eq(id->size(), 36);
  ck_assert_text_eq(*id, *read_boot_id());
}
END_TEST

START_TEST(start_of_a_process) {
  const auto mine = process_start_ticks(getpid());
  ck_assert_ok(mine);
  ck_assert_uint_gt(*mine, 0);
  ck_assert_uint_eq(*mine, *process_start_ticks(getpid()));

  const pid_t child = fork();
  if (child < 0) ck_abort_msg("cannot fork");
  if (child == 0) _exit(0);
  ck_assert_int_eq(waitpid(child, nullptr, 0), child);
  ck_assert_fails(process_start_ticks(child), ErrorCode::kNotFound, "is gone");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("boottime");
  TCase* const all = tcase_create("boottime");
  tcase_add_test(all, time_namespaces);
  tcase_add_test(all, clocks_go_forward);
  tcase_add_test(all, boot_id);
  tcase_add_test(all, start_of_a_process);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
