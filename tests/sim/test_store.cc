// The contract of the store, on the simulated one.
#include "common/log.h"
#include "tests/sim/store.h"
#include "tests/store/contract.h"

namespace usblease::store_test {
namespace {

class SimulatedBackend final : public Backend {
 public:
  explicit SimulatedBackend(TestLoop& loop) : machine_(kernel_.add_machine("h1")), engine_(kernel_) {
    loop.set_idle([this] { kernel_.run_one(); });
  }

  std::unique_ptr<store::Store> open(store::Executor executor) override {
    return std::make_unique<sim::StoreClient>(engine_, kernel_.add_process(machine_, "client"), std::move(executor));
  }

  void end(std::unique_ptr<store::Store> store, bool clean) override {
    if (!clean) static_cast<sim::StoreClient&>(*store).die();
    store.reset();
  }

  // The ttl, and the longest step at which it is looked at.
  [[nodiscard]] std::uint32_t owned_linger_ms() const override { return 2'750; }
  void pass(std::chrono::milliseconds time) override {
    kernel_.run_until(kernel_.now() + static_cast<sim::Ns>(time.count()) * sim::kMs, [] {});
  }

 private:
  sim::Kernel kernel_{1};
  sim::Machine& machine_;
  sim::StoreEngine engine_;
};

}  // namespace
}  // namespace usblease::store_test

int main() {
  using namespace usblease::store_test;
  Suite* const suite = suite_create("store-simulated");
  add_contract(suite, {"simulated", [](TestLoop& loop) { return std::make_unique<SimulatedBackend>(loop); }});
  SRunner* const runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? 0 : 1;
}
