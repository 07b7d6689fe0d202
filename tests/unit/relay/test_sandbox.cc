// What the sandbox allows and what it kills. Each attempt in a process of its own, as the relay enters it.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <vector>

#include "common/log.h"
#include "common/sanitized.h"
#include "daemon/relay/sandbox.h"
#include "tests/unit/relay/check_framework.h"

namespace {

constexpr uid_t kNobody = 65534;

// The wait status of a process that enters the sandbox and then does `attempt`; its exit code is the attempt's result.
int run_inside(const std::function<int()>& attempt) {
  const pid_t child = fork();
  if (child == 0) {
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDERR_FILENO);
    if (!usblease::relay::close_descriptors_above(5)) _exit(100);
    if (!usblease::relay::enter_sandbox({kNobody, kNobody})) _exit(101);
    _exit(attempt());
  }
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  return status;
}

#if !USBLEASE_SANITIZED
struct Forbidden {
  const char* name;
  std::function<int()> attempt;
};

const std::vector<Forbidden>& forbidden() {
  static const std::vector<Forbidden> list = {
      {"open", [] { return open("/etc/passwd", O_RDONLY); }},
      {"socket", [] { return socket(AF_INET, SOCK_STREAM, 0); }},
      {"fork", [] { return static_cast<int>(fork()); }},
      {"exec", [] { return execl("/bin/true", "true", nullptr); }},
      {"kill", [] { return kill(getppid(), 0); }},
      {"setuid", [] { return setuid(0); }},
      {"bind", [] { return bind(5, nullptr, 0); }},
      {"executable memory",
       [] {
         void* at = mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         return at == MAP_FAILED ? 1 : 0;
       }},
      {"memory made executable", [] { return mprotect(reinterpret_cast<void*>(0x10000), 4096, PROT_EXEC); }},
      {"a mapped file", [] { return mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, 2, 0) == MAP_FAILED ? 1 : 0; }},
      {"another socket option",
       [] {
         int value = 0;
         socklen_t length = sizeof value;
         return getsockopt(3, SOL_SOCKET, SO_ERROR, &value, &length);
       }},
  };
  return list;
}

START_TEST(what_a_relay_has_no_use_for_kills_it) {
  const Forbidden& one = forbidden()[static_cast<std::size_t>(_i)];
  const int status = run_inside(one.attempt);
  ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%s: status %x", one.name,
                static_cast<unsigned>(status));
}
END_TEST

START_TEST(memory_is_bounded) {
  const int status = run_inside([] {
    const auto map = [](std::size_t bytes) {
      return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
    };
    const int result = map(40UL << 20U) && !map(1UL << 30U) ? 0 : 1;
    return result;
  });
  ck_assert_int_eq(status, 0);
}
END_TEST
#endif

START_TEST(what_a_relay_does_is_allowed) {
  const int status = run_inside([] {
    usblease::log::info("a line of the log", {{"DEVICE", "dongle"}});
    pollfd none{-1, 0, 0};
    if (poll(&none, 1, 1) != 0) return 1;
    return 0;
  });
  ck_assert_int_eq(status, 0);
}
END_TEST

START_TEST(an_abort_is_seen_as_one) {
  const int status = run_inside([]() -> int { abort(); });
  ck_assert(WIFSIGNALED(status));
  ck_assert_int_eq(WTERMSIG(status), SIGABRT);
}
END_TEST

START_TEST(only_root_changes_the_user) {
  const pid_t child = fork();
  if (child == 0) {
    if (setresuid(kNobody, kNobody, kNobody) != 0) _exit(1);
    const auto entered = usblease::relay::enter_sandbox({kNobody - 1, kNobody - 1});
    _exit(!entered && entered.error().code == usblease::ErrorCode::kRefused ? 0 : 2);
  }
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
}
END_TEST

Suite* make_suite() {
  Suite* suite = suite_create("relay-sandbox");
  TCase* group = tcase_create("sandbox");
#if !USBLEASE_SANITIZED
  tcase_add_loop_test(group, what_a_relay_has_no_use_for_kills_it, 0, static_cast<int>(forbidden().size()));
  tcase_add_test(group, memory_is_bounded);
#endif
  tcase_add_test(group, what_a_relay_does_is_allowed);
  tcase_add_test(group, an_abort_is_seen_as_one);
  tcase_add_test(group, only_root_changes_the_user);
  suite_add_tcase(suite, group);
  return suite;
}

}  // namespace

int main() {
  SRunner* runner = srunner_create(make_suite());
  srunner_run_all(runner, CK_NORMAL);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
