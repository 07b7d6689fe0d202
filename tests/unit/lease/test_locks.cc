// Named locks: leased as devices are, but freed by time alone. What must hold whatever comes: at every instant at most
// one holder of an unexpired token, and tokens that only grow.
#include <rapidcheck.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <map>
#include <optional>

#include "daemon/lease/agenda.h"
#include "daemon/lease/coordinator_session.h"
#include "daemon/lease/host_session.h"
#include "tests/unit/lease/op.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;
using command::Command;

constexpr const char* kLock = "lock/fw";

World two_hosts() {
  World w;
  w.host("h1");
  w.host("h2");
  return w;
}

START_TEST(a_lock_is_there_when_somebody_wants_it) {
  World w = two_hosts();
  ck_assert_int_eq(w.acquire("r1", "flash@h1", {kLock}), command::CODE_OK);
  ASSERT_TEXT(w.holder(kLock), "flash@h1 1 granted");
  // Its home is its holder's host.
  ASSERT_TEXT(w.lease(kLock).instance().host_id(), "h1");
  ck_assert_int_eq(w.acquire("r2", "flash@h2", {kLock}), command::CODE_QUEUED);
  ck_assert_int_eq(w.acquire("r3", "other@h2", {kLock}, {.wait_ms = 0}), command::CODE_REFUSED);
  ck_assert_int_eq(w.fenced(kLock, 1, "h1"), command::CODE_OK);
  ASSERT_TEXT(w.settled(), "r2 OK lock/fw 2");
  ASSERT_TEXT(w.holder(kLock), "flash@h2 2 granted");
  const auto again = load([&] {
    std::vector<std::pair<std::string, std::string>> entries;
    for (const Change& change : encode(w.state())) entries.emplace_back(change.key, *change.value);
    return entries;
  }());
  ck_assert_msg(again.has_value(), "%s", again ? "" : again.error().message.c_str());
}
END_TEST

START_TEST(a_repeat_is_the_same_holder) {
  World w = two_hosts();
  w.acquire("r1", "flash@h1", {kLock});
  ck_assert_int_eq(w.acquire("r1", "flash@h1", {kLock}), command::CODE_OK);
  ASSERT_TEXT(w.holder(kLock), "flash@h1 1 granted");
  // Another start under the same name is somebody else.
  ck_assert_int_eq(w.acquire("r2", "flash@h1", {kLock}, {.start = 2}), command::CODE_QUEUED);
}
END_TEST

START_TEST(a_lock_that_is_to_end_is_held_until_its_time_is_over) {
  World w = two_hosts();
  w.acquire("r1", "flash@h1", {kLock});
  w.acquire("r2", "flash@h2", {kLock});
  w.release("flash@h1", {kLock});
  ASSERT_TEXT(w.holder(kLock), "flash@h1 1 fencing");
  const Timing timing{};
  Agenda agenda(timing);
  constexpr std::uint64_t kNow = 77'000 * kNsPerMs;
  agenda.observe(w.state(), device_key(kLock), kNow);
  const auto due_ns = agenda.next_ns(kNow, w.now_unix_s);
  ck_assert(due_ns.has_value());
  ck_assert_uint_eq(*due_ns, gone_ns(timing, kNow));
  // To look again does not put it off.
  agenda.observe(w.state(), device_key(kLock), kNow + 5'000 * kNsPerMs);
  ck_assert(agenda.due(*due_ns - 1, w.now_unix_s).empty());
  const auto due = agenda.due(*due_ns, w.now_unix_s);
  ck_assert_uint_eq(due.size(), 1);
  w.apply(due[0]);
  ASSERT_TEXT(w.holder(kLock), "flash@h2 2 granted");
}
END_TEST

// Of a device the same proves nothing.
START_TEST(a_lock_ends_with_the_session_of_its_host) {
  World w = two_hosts();
  w.plug("dongle", "h1");
  w.acquire("r0", "web@h1", {"dongle"});
  w.acquire("r1", "flash@h1", {kLock});
  w.acquire("r2", "flash@h2", {kLock});
  w.host_gone("h1");
  ASSERT_TEXT(w.holder(kLock), "flash@h2 2 granted");
  ASSERT_TEXT(w.holder("dongle"), "web@h1 1 granted");
}
END_TEST

START_TEST(a_reboot_ends_a_lock_at_once) {
  World w = two_hosts();
  w.acquire("r1", "flash@h1", {kLock});
  w.host("h1", 2);
  ASSERT_TEXT(w.holder(kLock), "free");
}
END_TEST

START_TEST(only_its_own_host_may_say_that_it_has_ended) {
  World w = two_hosts();
  w.acquire("r1", "flash@h1", {kLock});
  ck_assert_int_eq(w.fenced(kLock, 1, "h2"), command::CODE_REFUSED);
  ASSERT_TEXT(w.holder(kLock), "flash@h1 1 granted");
}
END_TEST

START_TEST(a_store_that_went_back_is_found_out_by_a_lock) {
  World w = two_hosts();
  w.acquire("r1", "flash@h1", {kLock});
  ck_assert_int_eq(w.host("h2", 1, {{.device = kLock, .armed = 9, .fenced = 9}}), command::CODE_OK);
  ck_assert(!w.state().meta.behind().empty());
  ck_assert_int_eq(w.acquire("r2", "flash@h2", {kLock}), command::CODE_UNAVAILABLE);
}
END_TEST

START_TEST(what_is_no_lock) {
  World w = two_hosts();
  w.plug("dongle", "h1");
  ck_assert_int_eq(w.acquire("r1", "flash@h1", {kLock, "dongle"}), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.acquire("r2", "flash@h1", {"lock/a", "lock/b"}), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.acquire("r3", "flash@h1", {"lock/"}), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.acquire("r4", "flash@h1", {"lock/A b"}), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.acquire("r5", "flash@h1", {"lock/lock/a"}), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.acquire("r6", "flash@h1", {kLock}, {.reservation = true}), command::CODE_BAD_REQUEST);
  // No host has one plugged in.
  ck_assert_int_eq(w.plug(kLock, "h1"), command::CODE_BAD_REQUEST);
  ck_assert_int_eq(w.forget(kLock, "h1"), command::CODE_BAD_REQUEST);
  ck_assert(!w.state().devices.contains(kLock));
}
END_TEST

START_TEST(locks_are_bounded) {
  World w = two_hosts();
  for (std::size_t i = 0; i < kLocksMax; ++i) {
    const std::string name = "lock/n" + std::to_string(i);
    ck_assert_int_eq(w.acquire("r" + std::to_string(i), "flash@h1", {name.c_str()}), command::CODE_OK);
  }
  ck_assert_int_eq(w.acquire("more", "flash@h1", {"lock/more"}), command::CODE_REFUSED);
  ck_assert(!w.state().devices.contains("lock/more"));
  ck_assert_int_eq(w.acquire("known", "flash@h2", {"lock/n7"}), command::CODE_QUEUED);
}
END_TEST

// --- The promise, with clocks that run apart, messages that are late or lost, and coordinators that change -----------

constexpr int kHosts = 3;
constexpr Timing kTiming;
constexpr std::uint64_t kFirstReading = 1'000'000 * kNsPerMs;

std::string host_name(int n) { return "h" + std::to_string(n % kHosts); }

// A command that runs under the lock, and the process that keeps its deadline.
struct Runner {
  std::uint64_t token = 0;
  std::uint64_t deadline_ns = 0;  // of its host's clock
};

// From the coordinator to one host: one connection, so in order, or lost with all that follows.
struct ToHost {
  std::optional<peer::RenewalAnswer> answer;
  std::optional<std::uint64_t> granted;
  std::optional<std::uint64_t> view;  // the token of the lease that the record gives to this host; 0: none
};

struct ModelHost {
  std::string id;
  std::int64_t drift_ppm = 0;
  std::optional<HostSession> session;
  std::deque<ToHost> inbox;
  std::uint64_t dead_through = 0;
  std::uint64_t viewed = 0;
  std::optional<std::uint64_t> writing;  // a grant that is not on disk yet
  std::optional<Runner> runner;
  std::vector<Runner> left_alone;  // nobody follows them any more: each ends at its deadline
  int start = 0;

  [[nodiscard]] std::uint64_t clock_ns(std::uint64_t real_ns) const {
    return kFirstReading + real_ns +
           static_cast<std::uint64_t>(static_cast<std::int64_t>(real_ns / 1'000'000) * drift_ppm);
  }
};

class Cluster {
 public:
  Cluster() : core_(make_state("model")) {
    for (int i = 0; i < kHosts; ++i) {
      ModelHost& host = hosts_[static_cast<std::size_t>(i)];
      host.id = host_name(i);
      host.drift_ppm = (i - 1) * 250;
      host.session.emplace(kTiming, host.id, boot_of(host.id), "machine-" + host.id);
    }
    elect();
    for (ModelHost& host : hosts_) register_host(host);
  }

  ModelHost& host(int n) { return hosts_[static_cast<std::size_t>(n % kHosts)]; }

  void pass(std::uint64_t ms) {
    for (const std::uint64_t end_ns = real_ns_ + ms * kNsPerMs; real_ns_ < end_ns;) {
      real_ns_ = std::min(end_ns, real_ns_ + 250 * kNsPerMs);
      tick();
      check();
    }
  }

  void ask(ModelHost& host) {
    if (!core_.state().requests.empty() && core_.state().requests.contains("r" + std::to_string(host.start) + host.id))
      return;
    ++host.start;
    Command command;
    command::Acquire& c = *command.mutable_acquire();
    c.set_request_id("r" + std::to_string(host.start) + host.id);
    *c.mutable_start() = start_of("g", host.id, host.start);
    c.add_devices(kLock);
    c.set_wait_ms(600'000);
    apply(command);
  }

  void release(ModelHost& host, bool ended) {
    if (!host.runner) return;
    const std::uint64_t token = host.runner->token;
    host.session->disarm({kLock, token});
    host.dead_through = std::max(host.dead_through, token);
    Command command;
    if (ended) {
      // Everything that ran has ended, and this host says so.
      host.runner.reset();
      command::ConfirmFenced& c = *command.mutable_confirm_fenced();
      c.set_device(kLock);
      c.set_token(token);
      c.mutable_instance()->set_host_id(host.id);
      c.mutable_instance()->set_boot_id(boot_of(host.id));
      c.mutable_instance()->set_counter(1);
    } else {
      // The daemon lost the process that keeps the deadline; the command may run until then.
      leave_alone(host);
      *command.mutable_release()->mutable_start() = start_of("g", host.id, host.start);
    }
    apply(command);
  }

  void revoke() {
    Command command;
    command.mutable_revoke()->set_device(kLock);
    apply(command);
  }

  void renew(ModelHost& host) { renewals_.emplace_back(&host, host.session->renew(host.clock_ns(real_ns_))); }

  // The answer to a renewal that has arrived by now; only whoever has the key answers.
  void answer(std::uint8_t which) {
    if (renewals_.empty()) return;
    const auto at = renewals_.begin() + which % static_cast<std::ptrdiff_t>(renewals_.size());
    const auto [host, renewal] = *at;
    renewals_.erase(at);
    const record::Host& known = core_.state().hosts.at(host->id);
    if (known.gone()) return register_host(*host);
    peer::RenewalAnswer answer;
    answer.set_seq(renewal.seq());
    answer.mutable_status()->set_code(command::CODE_OK);
    fill_answer(core_.state(), fences_, renewal, answer);
    sessions_->answered(host->id, renewal.boot_id(), coordinator_ns());
    host->inbox.push_back({answer, std::nullopt, std::nullopt});
  }

  void receive(ModelHost& host) {
    if (host.inbox.empty()) return;
    const ToHost got = host.inbox.front();
    host.inbox.pop_front();
    if (got.granted) host.writing = got.granted;
    if (got.view) host.viewed = *got.view;
    if (!got.answer) return;
    const auto orders = host.session->answer(*got.answer);
    for (const auto& [lease, deadline_ns] : orders.deadlines) {
      if (host.runner && host.runner->token == lease.second) host.runner->deadline_ns = deadline_ns;
    }
    for (const auto& [device, token] : orders.fence) {
      host.dead_through = std::max(host.dead_through, token);
      host.session->disarm({device, token});
    }
  }
  // What was on its way is lost. On the next connection the whole view comes first.
  void lose_connection(ModelHost& host) {
    host.inbox.clear();
    push_view(host);
  }

  void written(ModelHost& host) {
    if (!host.writing) return;
    const std::uint64_t token = *host.writing;
    host.writing.reset();
    if (token <= host.dead_through || token != host.viewed) return;
    leave_alone(host);
    host.session->arm({kLock, token}, kTiming.ttl_ms);
    host.runner = Runner{token, host.session->deadline({kLock, token})};
    check();
  }

  void elect() {
    sessions_.emplace(kTiming, coordinator_ns());
    agenda_ = Agenda(kTiming);
    agenda_.observe_all(core_.state(), coordinator_ns());
    fences_.observe_all(core_.state());
  }

  void check() {
    int unexpired = 0;
    const auto look = [&](const ModelHost& host, const Runner& runner) {
      if (host.clock_ns(real_ns_) >= runner.deadline_ns) return;
      ++unexpired;
      RC_ASSERT(runner.token >= greatest_);
      greatest_ = runner.token;
    };
    for (const ModelHost& host : hosts_) {
      for (const Runner& runner : host.left_alone) look(host, runner);
      if (host.runner) look(host, *host.runner);
    }
    RC_ASSERT(unexpired <= 1);
    held_ += unexpired;
  }
  [[nodiscard]] int held() const { return held_; }
  [[nodiscard]] std::uint64_t greatest() const { return greatest_; }

 private:
  [[nodiscard]] std::uint64_t coordinator_ns() const { return kFirstReading + real_ns_; }

  void push_view(ModelHost& host) {
    const auto lock = core_.state().devices.find(kLock);
    const bool here = lock != core_.state().devices.end() && lock->second.has_lease() &&
                      lock->second.lease().instance().host_id() == host.id &&
                      lock->second.lease().phase() != record::PHASE_FENCING;
    host.inbox.push_back({std::nullopt, std::nullopt, here ? lock->second.lease().token() : 0});
  }

  static void leave_alone(ModelHost& host) {
    if (host.runner) host.left_alone.push_back(*host.runner);
    host.runner.reset();
  }

  void register_host(ModelHost& host) {
    Command command;
    command::RegisterHost& c = *command.mutable_register_host();
    c.mutable_host()->set_id(host.id);
    c.mutable_host()->set_boot_id(boot_of(host.id));
    c.mutable_host()->set_machine_uuid("machine-" + host.id);
    c.set_has_floors(true);
    apply(command);
    sessions_->answered(host.id, boot_of(host.id), coordinator_ns());
  }

  void apply(const Command& command) {
    const Decision decision = core_.apply(command, Context{1'000});
    for (const Change& change : decision.changes) {
      agenda_.observe(core_.state(), change.key, coordinator_ns());
      fences_.observe(core_.state(), change.key);
    }
    if (!decision.changes.empty()) {
      for (ModelHost& host : hosts_) push_view(host);
    }
    const auto tell = [&](const command::Reply& reply) {
      for (const command::Grant& grant : reply.grants()) {
        for (ModelHost& host : hosts_) {
          if (host.id == grant.instance().host_id()) host.inbox.push_back({std::nullopt, grant.token(), std::nullopt});
        }
      }
    };
    tell(decision.reply);
    for (const Settled& settled : decision.settled) tell(settled.reply);
    check();
  }

  void tick() {
    for (const Command& command : agenda_.due(coordinator_ns(), 1'000)) apply(command);
    for (const auto& gone : sessions_->gone(core_.state(), coordinator_ns())) {
      Command command;
      command.mutable_host_gone()->set_host_id(gone.host_id);
      command.mutable_host_gone()->set_boot_id(gone.boot_id);
      apply(command);
    }
  }

  Core core_;
  std::optional<CoordinatorSessions> sessions_;
  Agenda agenda_;
  Fences fences_;
  std::array<ModelHost, kHosts> hosts_;
  std::vector<std::pair<ModelHost*, peer::Renewal>> renewals_;
  std::uint64_t real_ns_ = 0;
  std::uint64_t greatest_ = 0;
  int held_ = 0;
};

void step(Cluster& cluster, const Op& op) {
  ModelHost& host = cluster.host(op.a);
  const int kind = op.kind % 32;
  if (kind < 4) {
    cluster.ask(host);
  } else if (kind < 12) {
    // Mostly all goes well.
    cluster.renew(host);
    if (op.b % 8 != 0) cluster.answer(255);
    for (int i = 0; i < op.b % 16; ++i) cluster.receive(host);
    if (op.b % 4 != 0) cluster.written(host);
  } else if (kind < 14) {
    cluster.answer(op.b);
  } else if (kind < 17) {
    cluster.receive(host);
  } else if (kind < 19) {
    cluster.written(host);
  } else if (kind < 21) {
    cluster.release(host, op.b % 2 == 0);
  } else if (kind < 22) {
    cluster.revoke();
  } else if (kind < 23) {
    cluster.lose_connection(host);
  } else if (kind < 24) {
    cluster.elect();
  } else {
    cluster.pass(op.b % 32 == 0 ? 12'000 : 50 + op.b * 5U);
  }
  cluster.check();
}

void at_most_one_holder() {
  const auto ops = *any_ops(150, 3);
  Cluster cluster;
  for (int i = 0; i < kHosts; ++i) cluster.ask(cluster.host(i));
  for (const Op& op : ops) step(cluster, op);
  RC_CLASSIFY(cluster.held() > 0, "held");
  RC_CLASSIFY(cluster.greatest() > 3, "handed over");
}

START_TEST(at_most_one_holder_of_an_unexpired_token) {
  ck_assert(rc::check("at most one holder of an unexpired token", at_most_one_holder));
}
END_TEST

}  // namespace

int main() {
  setenv("RC_PARAMS", "max_success=2000", 0);
  return run_suite("locks",
                   {a_lock_is_there_when_somebody_wants_it, a_repeat_is_the_same_holder,
                    a_lock_that_is_to_end_is_held_until_its_time_is_over, a_lock_ends_with_the_session_of_its_host,
                    a_reboot_ends_a_lock_at_once, only_its_own_host_may_say_that_it_has_ended,
                    a_store_that_went_back_is_found_out_by_a_lock, what_is_no_lock, locks_are_bounded,
                    at_most_one_holder_of_an_unexpired_token},
                   300);
}
