// The threads for calls that may block: what hangs holds up only its own kind.
#include <future>

#include "common/boottime.h"
#include "daemon/host/work_pool.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

constexpr auto kBound = std::chrono::seconds(10);

// A task that hangs until it is let go.
class Hung {
 public:
  std::function<void()> task() {
    return [state = state_] {
      state->begun.set_value();
      state->go.get_future().wait();
      state->over.set_value();
    };
  }
  void wait_until_begun() { ck_assert(state_->begun.get_future().wait_for(kBound) == std::future_status::ready); }
  void let_go() { state_->go.set_value(); }
  void wait_until_over() { ck_assert(state_->over.get_future().wait_for(kBound) == std::future_status::ready); }

 private:
  struct State {
    std::promise<void> begun;
    std::promise<void> go;
    std::promise<void> over;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

bool runs(WorkPool& pool, Lane lane, const std::string& key, std::chrono::milliseconds bound) {
  auto ran = std::make_shared<std::promise<void>>();
  auto future = ran->get_future();
  ck_assert(pool.submit(lane, key, [ran] { ran->set_value(); }));
  return future.wait_for(bound) == std::future_status::ready;
}

START_TEST(what_hangs_holds_up_only_its_kind) {
  WorkPool pool;
  Hung changes[kChangesMax];
  for (std::size_t i = 0; i < kChangesMax; ++i) {
    ck_assert(pool.submit(Lane::kChange, "guest" + std::to_string(i), changes[i].task()));
    changes[i].wait_until_begun();
  }
  ck_assert(!runs(pool, Lane::kChange, "other", std::chrono::milliseconds(50)));
  ck_assert(runs(pool, Lane::kQuery, "", kBound));
  Hung queries[kPoolThreads - 1 - kChangesMax];
  for (auto& query : queries) {
    ck_assert(pool.submit(Lane::kQuery, "", query.task()));
    query.wait_until_begun();
  }
  ck_assert(!runs(pool, Lane::kQuery, "", std::chrono::milliseconds(50)));
  ck_assert(runs(pool, Lane::kEvent, "", kBound));
  changes[1].let_go();
  ck_assert(runs(pool, Lane::kChange, "other", kBound));
  ck_assert(!runs(pool, Lane::kChange, "guest0", std::chrono::milliseconds(50)));  // the key of what hangs
  changes[0].let_go();
  ck_assert(runs(pool, Lane::kChange, "guest0", kBound));
  for (std::size_t i = 2; i < kChangesMax; ++i) changes[i].let_go();
  for (auto& query : queries) query.let_go();
}
END_TEST

START_TEST(in_order_of_submission) {
  std::string order;
  std::promise<void> last;
  WorkPool pool;
  Hung first;
  ck_assert(pool.submit(Lane::kEvent, "", first.task()));
  first.wait_until_begun();
  for (int i = 0; i < 10; ++i) {
    ck_assert(pool.submit(Lane::kEvent, "", [&order, i] { order += std::to_string(i); }));
  }
  ck_assert(pool.submit(Lane::kEvent, "", [&] { last.set_value(); }));
  first.let_go();
  ck_assert(last.get_future().wait_for(kBound) == std::future_status::ready);
  test::expect_text(order, "0123456789");
}
END_TEST

START_TEST(bounded) {
  WorkPool pool;
  Hung one;
  ck_assert(pool.submit(Lane::kEvent, "", one.task()));
  one.wait_until_begun();
  for (std::size_t i = 0; i < kPoolTasksMax; ++i) ck_assert(pool.submit(Lane::kEvent, "", [] {}));
  ck_assert(!pool.submit(Lane::kEvent, "", [] {}));
  one.let_go();
}
END_TEST

START_TEST(stops_although_one_hangs) {
  Hung one;
  bool ran = false;
  const std::uint64_t begin_ns = boottime_now_ns();
  {
    WorkPool pool;
    ck_assert(pool.submit(Lane::kChange, "a", one.task()));
    ck_assert(pool.submit(Lane::kChange, "a", [&] { ran = true; }));
    one.wait_until_begun();
    pool.stop();
    ck_assert(!pool.submit(Lane::kQuery, "", [] {}));
  }
  ck_assert_uint_lt(boottime_now_ns() - begin_ns, 10 * WorkPool::kStopWaitMs * 1'000'000);
  one.let_go();
  one.wait_until_over();
  ck_assert(!ran);
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "work_pool", {what_hangs_holds_up_only_its_kind, in_order_of_submission, bounded, stops_although_one_hangs}, 60);
}
