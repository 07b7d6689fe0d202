// The coordinator's soft state: what it knows of sessions, graces and waits, over elections and failed writes.
#include "common/boottime.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/store/sqlite_store.h"
#include "tests/unit/host/host_test.h"

namespace usblease::cluster {
namespace {

using test::run_until;
using test::TemporaryDirectory;

constexpr const char* kBootId = "99999999-9999-4999-8999-999999999999";
constexpr const char* kGuestUuid = "11111111-2222-4333-8444-555555555555";

// Refuses what would change a key with this prefix, as a full disk does; or says of it that nobody knows, and keeps it.
class PickyStore : public store::Store {
 public:
  explicit PickyStore(std::unique_ptr<store::Store> inner) : inner_(std::move(inner)) {}
  std::string refused_prefix;
  std::string unknown_prefix;  // once
  std::optional<store::Txn> kept;

  void commit(store::Txn txn, std::function<void(store::TxnResult)> done) override {
    store::TxnResult result;
    if (!kept && changes(txn, unknown_prefix)) {
      kept = std::move(txn);
      result.message = "no answer";
      return post([done = std::move(done), result] { done(result); });
    }
    if (!changes(txn, refused_prefix)) return inner_->commit(std::move(txn), std::move(done));
    result.outcome = store::Outcome::kRefused;
    result.cause = store::Cause::kNoSpace;
    result.message = "no room";
    post([done = std::move(done), result] { done(result); });
  }
  void read(std::string prefix, std::function<void(store::ReadResult)> done) override {
    inner_->read(std::move(prefix), std::move(done));
  }
  store::WatchId watch(std::string prefix, std::uint64_t from,
                       std::function<void(store::WatchUpdate)> update) override {
    return inner_->watch(std::move(prefix), from, std::move(update));
  }
  void cancel_watch(store::WatchId id) override { inner_->cancel_watch(id); }
  [[nodiscard]] store::Health health() const override { return inner_->health(); }
  [[nodiscard]] std::string describe() const override { return inner_->describe(); }

  // Does what was kept, as a connection does that was slow.
  store::TxnResult do_kept() {
    std::optional<store::TxnResult> done;
    inner_->commit(*kept, [&](const store::TxnResult& result) { done = result; });
    ck_assert(run_until([&] { return done.has_value(); }));
    return *done;
  }

 private:
  static bool changes(const store::Txn& txn, const std::string& prefix) {
    return !prefix.empty() && std::any_of(txn.writes.begin(), txn.writes.end(),
                                          [&](const store::Write& write) { return write.key.rfind(prefix, 0) == 0; });
  }
  std::unique_ptr<store::Store> inner_;
};

struct Fixture {
  explicit Fixture(const lease::Timing& timing) {
    store::SqliteOptions options;
    options.path = directory.path("db");
    auto opened = store::open_sqlite_store(options, post);
    ck_assert(opened.has_value());
    store = std::make_unique<PickyStore>(std::move(*opened));
    CoordinatorEvents events;
    events.event = [this](const record::Event& event) { kinds.push_back(event.kind()); };
    events.view = [](const std::string& /*host*/, const peer::HostView& /*view*/) {};
    coordinator = std::make_unique<Coordinator>(*store, CoordinatorOptions{"h1", kBootId, "test", timing}, events);
    coordinator->start();
    ck_assert(run_until([&] { return coordinator->active(); }));
  }

  void submit(const command::Command& command) {
    coordinator->submit(command, [this](const auto& /*what became of it is in the state*/) { ++answers; });
  }
  void apply(const command::Command& command) {
    const int before = answers;
    submit(command);
    ck_assert(run_until([&] { return answers > before; }));
  }
  void add_host(const std::string& id) {
    command::Command command;
    command.mutable_register_host()->mutable_host()->set_id(id);
    command.mutable_register_host()->mutable_host()->set_boot_id(kBootId);
    command.mutable_register_host()->set_has_floors(true);
    apply(command);
  }
  void lease_dongle() {
    command::Command report;
    report.mutable_report_device()->set_device("dongle");
    record::Presence& presence = *report.mutable_report_device()->mutable_presence();
    presence.mutable_instance()->set_host_id("h1");
    presence.mutable_instance()->set_boot_id(kBootId);
    presence.mutable_instance()->set_counter(1);
    presence.set_present(true);
    apply(report);
    command::Command acquire;
    acquire.mutable_acquire()->set_request_id("r1");
    record::Start& start = *acquire.mutable_acquire()->mutable_start();
    start.set_guest_uuid(kGuestUuid);
    start.set_nonce("0000000000000001");
    start.set_host_id("h1");
    start.set_boot_id(kBootId);
    start.set_domain_id(-1);
    acquire.mutable_acquire()->set_guest_name("web");
    acquire.mutable_acquire()->add_devices("dongle");
    acquire.mutable_acquire()->set_principal("test");
    apply(acquire);
    ck_assert(phase() == record::PHASE_GRANTED);
  }
  [[nodiscard]] record::Phase phase() const {
    const lease::State* state = coordinator->state();
    return state == nullptr ? record::PHASE_UNSPECIFIED : state->devices.at("dongle").lease().phase();
  }
  [[nodiscard]] bool told(const std::string& kind) const {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
  }

  TemporaryDirectory directory;
  std::unique_ptr<PickyStore> store;
  std::unique_ptr<Coordinator> coordinator;
  std::vector<std::string> kinds;  // of the events
  int answers = 0;
};

START_TEST(a_registration_begins_a_session) {
  const lease::Timing timing{300, 50, 100, 500};
  Fixture f(timing);
  // So long after the election that whoever has not renewed since then counts as gone.
  bool later = false;
  const auto wait = run_after(lease::gone_ns(timing, 0) * 2, [&] { later = true; });
  ck_assert(run_until([&] { return later; }));
  const std::uint64_t before_ns = boottime_now_ns();
  f.add_host("h1");
  ck_assert(run_until([&] { return f.told("host-gone"); }));  // it never renews
  ck_assert_uint_ge(boottime_now_ns(), lease::gone_ns(timing, before_ns));
}
END_TEST

START_TEST(writes_that_fail_prolong_no_grace) {
  Fixture f(lease::Timing{});
  f.add_host("h1");
  f.lease_dongle();
  command::Command revoke;
  revoke.mutable_revoke()->set_device("dongle");
  revoke.mutable_revoke()->set_grace_ms(1'000);
  revoke.mutable_revoke()->set_reason("test");
  revoke.mutable_revoke()->set_principal("test");
  f.apply(revoke);
  ck_assert(f.phase() == record::PHASE_REVOKING);
  // After each of them the state is read again: more often than a grace lasts.
  f.store->refused_prefix = "host/";
  SourceHandle again;
  std::function<void()> fail_once = [&] {
    command::Command refused;
    refused.mutable_register_host()->mutable_host()->set_id("h2");
    refused.mutable_register_host()->mutable_host()->set_boot_id(kBootId);
    f.submit(refused);
    again = run_after(200 * lease::kNsPerMs, fail_once);
  };
  fail_once();
  ck_assert(run_until([&] { return f.phase() == record::PHASE_FENCING; }));
  ck_assert(!f.coordinator->state()->hosts.contains("h2"));
}
END_TEST

START_TEST(what_was_not_done_when_it_was_read_back_is_never_done) {
  Fixture f(lease::Timing{});
  f.add_host("h1");
  f.lease_dongle();
  f.store->unknown_prefix = "request/";
  command::Command acquire;
  acquire.mutable_acquire()->set_request_id("r2");
  record::Start& start = *acquire.mutable_acquire()->mutable_start();
  start.set_guest_uuid(kGuestUuid);
  start.set_nonce("0000000000000002");
  start.set_host_id("h1");
  start.set_boot_id(kBootId);
  start.set_domain_id(-1);
  acquire.mutable_acquire()->set_guest_name("web");
  acquire.mutable_acquire()->add_devices("dongle");
  acquire.mutable_acquire()->set_wait_ms(60'000);
  acquire.mutable_acquire()->set_principal("test");
  // Taken back before it is decided again, so that no later decision is about any of its records.
  f.submit(acquire);
  command::Command cancel;
  cancel.mutable_cancel_request()->set_request_id("r2");
  cancel.mutable_cancel_request()->set_reason("test");
  f.apply(cancel);
  ck_assert(run_until([&] { return f.store->kept.has_value() && f.coordinator->active(); }));
  ck_assert(f.store->do_kept().cause == store::Cause::kGuard);
  ck_assert(!f.coordinator->doubtful());
}
END_TEST

}  // namespace
}  // namespace usblease::cluster

int main() {
  using namespace usblease::cluster;
  return usblease::test::run_suite("coordinator",
                                   {a_registration_begins_a_session, writes_that_fail_prolong_no_grace,
                                    what_was_not_done_when_it_was_read_back_is_never_done},
                                   60);
}
