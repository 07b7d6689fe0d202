// Timers, descriptors, and calls from other threads.
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#include "common/boottime.h"
#include "common/fd.h"
#include "common/main_loop.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

// Check's own limit for a test bounds this.
template <typename Condition>
void iterate_until(Condition condition) {
  while (!condition()) g_main_context_iteration(nullptr, TRUE);
}

void iterate_pending() {
  while (g_main_context_iteration(nullptr, FALSE) != FALSE) {
  }
}

START_TEST(a_timer_runs_once_and_not_early) {
  int runs = 0;
  const std::uint64_t begin_ns = boottime_now_ns();
  std::uint64_t ran_ns = 0;
  const auto timer = run_after(20 * kNsPerMs, [&] {
    ++runs;
    ran_ns = boottime_now_ns();
  });
  iterate_until([&] { return runs > 0; });
  ck_assert_uint_ge(ran_ns, begin_ns + 20 * kNsPerMs);
  iterate_pending();
  ck_assert_int_eq(runs, 1);
}
END_TEST

START_TEST(timers_run_in_the_order_of_their_time) {
  std::vector<int> order;
  const auto late = run_after(30 * kNsPerMs, [&] { order.push_back(3); });
  const auto soon = run_after(1 * kNsPerMs, [&] { order.push_back(2); });
  const auto now = run_after(0, [&] { order.push_back(1); });
  iterate_until([&] { return order.size() == 3; });
  ck_assert((order == std::vector<int>{1, 2, 3}));
}
END_TEST

START_TEST(a_handle_cancels_when_it_dies) {
  bool dead_ran = false;
  bool last_ran = false;
  {
    const auto dead = run_after(0, [&] { dead_ran = true; });
  }
  auto cancelled = run_after(0, [&] { dead_ran = true; });
  cancelled.cancel();
  ck_assert(!cancelled);
  auto replaced = run_after(0, [&] { dead_ran = true; });
  replaced = run_after(5 * kNsPerMs, [&] { last_ran = true; });
  iterate_until([&] { return last_ran; });
  ck_assert(!dead_ran);
}
END_TEST

START_TEST(a_timer_may_be_set_again_from_inside) {
  int runs = 0;
  SourceHandle timer;
  std::function<void()> tick = [&] {
    if (++runs < 3) timer = run_after(kNsPerMs, tick);
  };
  timer = run_after(0, tick);
  iterate_until([&] { return runs == 3; });
}
END_TEST

// What the callback holds lives until it returns, although it destroyed its own handle.
START_TEST(a_callback_may_destroy_its_handle) {
  const UniqueFd event(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
  auto payload = std::make_shared<int>(7);
  std::weak_ptr<int> watched = payload;
  int runs = 0;
  SourceHandle handle;
  handle = watch_fd(event.get(), G_IO_IN, [&handle, &runs, payload = std::move(payload)](GIOCondition /*ready*/) {
    handle.cancel();
    runs += *payload;
  });
  iterate_until([&] { return runs > 0; });
  iterate_pending();
  ck_assert_int_eq(runs, 7);
  ck_assert(watched.expired());
}
END_TEST

START_TEST(a_descriptor_is_watched_until_the_handle_dies) {
  const UniqueFd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int runs = 0;
  auto handle = watch_fd(event.get(), G_IO_IN, [&](GIOCondition ready) {
    ck_assert_int_eq(ready, G_IO_IN);
    std::uint64_t count = 0;
    ck_assert_int_eq(read(event.get(), &count, sizeof count), sizeof count);
    ++runs;
  });
  iterate_pending();
  ck_assert_int_eq(runs, 0);
  for (int i = 1; i <= 3; ++i) {
    ck_assert_int_eq(eventfd_write(event.get(), 1), 0);
    iterate_until([&] { return runs == i; });
  }
  handle.cancel();
  ck_assert_int_eq(eventfd_write(event.get(), 1), 0);
  iterate_pending();
  ck_assert_int_eq(runs, 3);
}
END_TEST

START_TEST(a_hang_up_is_reported_without_being_asked_for) {
  int ends[2] = {-1, -1};
  ck_assert_int_eq(pipe(ends), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  bool gone = false;
  const auto handle =
      watch_fd(reader.get(), GIOCondition(0), [&](GIOCondition ready) { gone = (ready & G_IO_HUP) != 0; });
  iterate_pending();
  ck_assert(!gone);
  writer.reset();
  iterate_until([&] { return gone; });
}
END_TEST

START_TEST(posts_of_one_thread_keep_their_order) {
  constexpr int kThreads = 4;
  constexpr int kPosts = 500;
  std::vector<std::vector<int>> seen(kThreads);
  int total = 0;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kPosts; ++i) {
        post([&, t, i] {
          seen[static_cast<std::size_t>(t)].push_back(i);
          ++total;
        });
      }
    });
  }
  iterate_until([&] { return total == kThreads * kPosts; });
  for (auto& thread : threads) thread.join();
  for (const auto& numbers : seen) ck_assert(std::is_sorted(numbers.begin(), numbers.end()));
}
END_TEST

START_TEST(a_timer_needs_no_descriptor_when_none_is_left) {
  iterate_pending();  // the context has what it needs
  rlimit limit{};
  ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = 3;
  ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ck_assert_int_lt(eventfd(0, 0), 0);
  const std::uint64_t begin_ns = boottime_now_ns();
  int runs = 0;
  const auto timer = run_after(10 * kNsPerMs + 1, [&] { ++runs; });
  const auto dead = run_after(1, [&] { runs += 100; });
  SourceHandle cancelled = run_after(1, [&] { runs += 1000; });
  cancelled.cancel();
  iterate_until([&] { return runs == 101; });
  ck_assert_uint_ge(boottime_now_ns(), begin_ns + 10 * kNsPerMs);
  iterate_pending();
  ck_assert_int_eq(runs, 101);
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("main_loop");
  TCase* const all = tcase_create("main_loop");
  tcase_add_test(all, a_timer_runs_once_and_not_early);
  tcase_add_test(all, timers_run_in_the_order_of_their_time);
  tcase_add_test(all, a_handle_cancels_when_it_dies);
  tcase_add_test(all, a_timer_may_be_set_again_from_inside);
  tcase_add_test(all, a_callback_may_destroy_its_handle);
  tcase_add_test(all, a_descriptor_is_watched_until_the_handle_dies);
  tcase_add_test(all, a_hang_up_is_reported_without_being_asked_for);
  tcase_add_test(all, posts_of_one_thread_keep_their_order);
  if (!test::kSanitized) tcase_add_test(all, a_timer_needs_no_descriptor_when_none_is_left);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
