#include "daemon/cluster/coordinator.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/mutant.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

using lease::kNsPerMs;

constexpr std::size_t kBatchChangesMax = 96;  // decisions join one transaction until it has this many writes
// Shorter than a host waits for its answer (router.cc), so that the answer says why.
constexpr std::uint64_t kSubmitWaitNs = 4'500 * kNsPerMs;
constexpr std::size_t kSubmittedMax = 16 * 1024;
constexpr std::uint64_t kRetryNs = 500 * kNsPerMs;
constexpr std::uint64_t kStandDownNs = 1'000 * kNsPerMs;
constexpr int kAttemptsMax = 3;  // of one command after unknown outcomes

command::Reply unavailable(const std::string& why) {
  command::Reply reply;
  reply.mutable_status()->set_code(command::CODE_UNAVAILABLE);
  reply.mutable_status()->set_message(why);
  return reply;
}

bool is_event(const std::string& key) { return key.rfind(lease::kEventPrefix, 0) == 0; }

}  // namespace

Coordinator::Coordinator(store::Store& store, CoordinatorOptions options, CoordinatorEvents events)
    : store_(store),
      options_(std::move(options)),
      events_(std::move(events)),
      election_(store, options_.host_id, options_.boot_id, election_events()),
      views_([this](const std::string& host_id, const peer::HostView& view) { events_.view(host_id, view); }),
      renewals_(
          store, [this](const store::Entry& entry) { return is_my_key(entry); },
          [this](const peer::Renewal& renewal, bool ours) { return renewal_answer(renewal, ours); },
          [this] { election_.deposed("a read showed that the coordinator key is another host's"); }) {}

// --- Election ------------------------------------------------------------------------------------

ElectionEvents Coordinator::election_events() {
  ElectionEvents events;
  events.won = [this](std::uint64_t term, std::uint64_t /*key_revision*/) { won(term); };
  events.lost = [this](const std::string& why) { lost(why); };
  events.holder = [this](const std::string& host_id, std::uint64_t term) {
    if (host_id != options_.host_id) trouble_ = term == 0 ? "nobody is elected" : "";
    if (events_.holder) events_.holder(host_id, term);
  };
  events.tell_candidates = [this](const peer::GoneVote& vote) {
    if (events_.tell_candidates) events_.tell_candidates(vote);
  };
  events.trouble = [this](const std::string& why) { note_trouble(why); };
  return events;
}

void Coordinator::note_trouble(const std::string& why) {
  if (why != trouble_) log::warning("no coordinator here", {{"ERROR", why}});
  trouble_ = why;
}

void Coordinator::won(std::uint64_t term) {
  term_ = term;
  ++elections_won_;
  announced_ = false;
  sessions_.reset();
  heard_.clear();
  doubtful_ = false;  // the key that earlier ones are guarded by is no more
  load();
}

void Coordinator::lost(const std::string& why) {
  const bool was_announced = std::exchange(announced_, false);
  phase_ = Phase::kFollowing;
  trouble_ = why;
  core_.reset();
  sessions_.reset();
  committing_ = false;  // what is under way fails by its guard, or was done: its answer changes nothing here
  load_retry_.cancel();
  standing_down_.cancel();
  tick_.cancel();
  tick_at_ns_ = 0;
  if (was_announced && events_.active) events_.active(false);
  renewals_.refuse_all();
  for (Submitted& waiting : std::exchange(submitted_, {})) waiting.decided(std::nullopt);
}

void Coordinator::stand_down() {
  standing_down_ = run_after(kStandDownNs, [this] {
    standing_down_.cancel();
    pump();
  });
}

bool Coordinator::is_my_key(const store::Entry& entry) const {
  return entry.key == lease::kCoordinatorKey && election_.holding() && entry.mod_revision == election_.key_revision();
}

void Coordinator::load() {
  phase_ = Phase::kLoading;
  store_.read("", [this, alive = std::weak_ptr(alive_), election = elections_won_](const store::ReadResult& all) {
    if (alive.expired() || election != elections_won_ || !holding()) return;
    if (!all.ok) return load_later("cannot read the store: " + all.message);
    if (std::none_of(all.entries.begin(), all.entries.end(), [this](const auto& entry) { return is_my_key(entry); }))
      return election_.deposed("the coordinator key is another host's");
    doubtful_ ? rule_out_late_writes(all) : loaded(all);
  });
}

// A transaction whose outcome is unknown may be done later than it was read back, for as long as its guards hold. Each
// of ours is guarded by the record of the cluster itself, too: once that is written as it is, none of before can be
// done.
void Coordinator::rule_out_late_writes(const store::ReadResult& all) {
  const auto meta = std::find_if(all.entries.begin(), all.entries.end(),
                                 [](const store::Entry& entry) { return entry.key == lease::kMetaKey; });
  const bool fresh = meta == all.entries.end();
  const std::string as_it_is =
      fresh ? *lease::encode_key(lease::make_state(options_.cluster_id), lease::kMetaKey).value : meta->value;
  store::Txn txn;
  txn.guards.push_back({lease::kCoordinatorKey, store::Guard::What::kModRevision, election_.key_revision()});
  txn.guards.push_back({lease::kMetaKey, store::Guard::What::kModRevision, fresh ? 0 : meta->mod_revision});
  txn.writes.push_back({lease::kMetaKey, as_it_is, false});
  store_.commit(std::move(txn), [this, alive = std::weak_ptr(alive_), election = elections_won_,
                                 all](const store::TxnResult& result) {
    if (alive.expired() || election != elections_won_ || !holding()) return;
    if (result.outcome == store::Outcome::kDone) doubtful_ = false;
    // What was read shows whose the key is. And a disk without room ends no session: then the doubt stays.
    const bool refused = result.outcome == store::Outcome::kRefused && result.cause != store::Cause::kGuard;
    if (refused) return loaded(all);
    result.outcome == store::Outcome::kDone ? load() : load_later(result.message);
  });
}

void Coordinator::load_later(const std::string& why) {
  note_trouble(why);
  load_retry_ = run_after(kRetryNs, [this] { load(); });
}

void Coordinator::loaded(const store::ReadResult& all) {
  std::vector<std::pair<std::string, std::string>> entries;
  std::map<std::string, std::uint64_t> revisions;
  for (const store::Entry& entry : all.entries) {
    entries.emplace_back(entry.key, entry.value);
    revisions[entry.key] = entry.mod_revision;
  }
  auto state = lease::load(entries);
  if (!state) return load_later(state.error().message);
  const bool fresh = state->meta.format() == 0;
  if (fresh) *state = lease::make_state(options_.cluster_id);
  core_ = std::make_unique<lease::Core>(std::move(*state), heard_);
  revisions_ = std::move(revisions);
  revision_ = all.revision;
  // A reload after a failed write is not an election: the sessions, the graces and the waits are still known.
  const std::uint64_t now_ns = boottime_now_ns();
  if (!sessions_) {
    sessions_.emplace(options_.timing, MUTANT(no_grace_after_election) ? 0 : now_ns);
    agenda_ = lease::Agenda(options_.timing);
  }
  agenda_.observe_all(core_->state(), now_ns);
  fences_.observe_all(core_->state());
  // What hosts ask for when they see it, this one at once, is decided after all of them have seen the same.
  views_.load(core_->state());
  phase_ = Phase::kActive;
  trouble_.clear();
  late_subscribers_.clear();
  if (!std::exchange(announced_, true) && events_.active) events_.active(true);
  if (events_.loaded) events_.loaded();
  schedule_tick();
  pump();
}

void Coordinator::subscribe(const std::string& host_id) {
  views_.subscribe(host_id, committing_ ? nullptr : state());
  if (committing_) late_subscribers_.insert(host_id);
}

void Coordinator::unsubscribe(const std::string& host_id) {
  views_.unsubscribe(host_id);
  late_subscribers_.erase(host_id);
}

// --- Decisions -------------------------------------------------------------------------------------

void Coordinator::submit(command::Command command, Decided decided) {
  if (!holding()) return post([decided = std::move(decided)] { decided(std::nullopt); });
  if (submitted_.size() >= kSubmittedMax)
    return post([decided = std::move(decided)] {
      decided(unavailable("too many requests wait for the coordinator; try again"));
    });
  submitted_.push_back({std::move(command), std::move(decided), boottime_now_ns() + kSubmitWaitNs, 0});
  pump();
  if (!expiry_) schedule_expiry();
}

void Coordinator::schedule_expiry() {
  expiry_.cancel();
  if (submitted_.empty()) return;
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t due_ns = submitted_.front().expires_ns;
  expiry_ = run_after(due_ns > now_ns ? due_ns - now_ns : 0, [this] { expire_submitted(); });
}

void Coordinator::expire_submitted() {
  const std::uint64_t now_ns = boottime_now_ns();
  std::vector<Submitted> expired;
  while (!submitted_.empty() && submitted_.front().expires_ns <= now_ns) {
    expired.push_back(std::move(submitted_.front()));
    submitted_.pop_front();
  }
  schedule_expiry();
  for (const Submitted& late : expired)
    late.decided(
        unavailable("no coordinator decided in time" + (trouble_.empty() ? "" : ": " + trouble_) + "; try again"));
}

void Coordinator::pump() {
  if (!active() || committing_ || submitted_.empty() || standing_down_) return;
  Batch batch;
  Changes changes = decide(batch);
  // Nothing to write, but not before what it was decided from is on disk: nothing is in flight here.
  if (changes.empty())
    return post([this, alive = std::weak_ptr(alive_), batch = std::move(batch)]() mutable {
      if (alive.expired()) return;
      note_heard(batch);
      answer(std::move(batch), {});
      pump();
    });
  if (MUTANT(answer_before_commit)) {
    for (Decision& decision : batch)
      std::exchange(decision.submitted.decided, [](const auto&) {})(decision.outcome.reply);
  }
  committing_ = true;
  store::Txn txn = make_txn(changes);
  store_.commit(std::move(txn),
                [this, alive = std::weak_ptr(alive_), election = elections_won_, batch = std::move(batch),
                 changes = std::move(changes)](const store::TxnResult& result) mutable {
                  if (alive.expired()) return;
                  if (election != elections_won_ || !holding()) {
                    // Deposed meanwhile: the views that belong to this are another coordinator's to push.
                    for (Decision& decision : batch) decision.submitted.decided(std::nullopt);
                    return;
                  }
                  committed(result, std::move(batch), changes);
                });
}

Changes Coordinator::decide(Batch& batch) {
  Changes changes;
  const lease::Context context{wall_clock_unix_s()};
  while (!submitted_.empty() && changes.size() < kBatchChangesMax) {
    Decision decision{std::move(submitted_.front()), {}};
    submitted_.pop_front();
    const command::Command& command = decision.submitted.command;
    if (command.has_host_gone() && !still_gone(command.host_gone())) {
      decision.outcome.reply.mutable_status()->set_code(command::CODE_OK);
      batch.push_back(std::move(decision));
      continue;
    }
    decision.outcome = core_->apply(command, context);
    // A session begins with the registration: before its first renewal it would count as gone since the election.
    if (command.has_register_host() && decision.outcome.reply.status().code() == command::CODE_OK) {
      const record::Host& host = command.register_host().host();
      sessions_->answered(host.id(), host.boot_id(), boottime_now_ns());
    }
    for (lease::Change& change : decision.outcome.changes) changes[change.key] = std::move(change.value);
    batch.push_back(std::move(decision));
  }
  // The first transaction of a new cluster also says what it is.
  if (!changes.empty() && !revisions_.contains(lease::kMetaKey))
    changes[lease::kMetaKey] = lease::encode_key(core_->state(), lease::kMetaKey).value;
  return changes;
}

// It waited for its turn, and the host may have renewed meanwhile.
bool Coordinator::still_gone(const command::HostGone& gone) const {
  if (MUTANT(gone_as_it_was)) return true;
  const auto now = sessions_->gone(core_->state(), boottime_now_ns());
  return std::any_of(now.begin(), now.end(), [&](const auto& host) {
    return host.host_id == gone.host_id() && host.boot_id == gone.boot_id();
  });
}

store::Txn Coordinator::make_txn(const Changes& changes) const {
  store::Txn txn;
  if (!MUTANT(write_without_guard))
    txn.guards.push_back({lease::kCoordinatorKey, store::Guard::What::kModRevision, election_.key_revision()});
  // Also where it does not change: see rule_out_late_writes.
  const auto meta = revisions_.find(lease::kMetaKey);
  if (!changes.contains(lease::kMetaKey))
    txn.guards.push_back(
        {lease::kMetaKey, store::Guard::What::kModRevision, meta == revisions_.end() ? 0 : meta->second});
  for (const auto& [key, value] : changes) {
    const auto known = revisions_.find(key);
    if (!is_event(key))
      txn.guards.push_back({key, store::Guard::What::kModRevision, known == revisions_.end() ? 0 : known->second});
    if (value || known != revisions_.end()) txn.writes.push_back({key, value, false});
  }
  return txn;
}

void Coordinator::committed(const store::TxnResult& result, Batch batch, const Changes& changes) {
  const bool believed = MUTANT(unknown_is_done) && result.outcome == store::Outcome::kUnknown;
  if (result.outcome != store::Outcome::kDone && !believed) return batch_failed(result, std::move(batch));
  trouble_.clear();
  revision_ = result.revision;
  for (const auto& [key, value] : changes) {
    if (value) {
      revisions_[key] = result.revision;
    } else {
      revisions_.erase(key);
    }
  }
  const std::uint64_t now_ns = boottime_now_ns();
  for (const auto& [key, value] : changes) {
    agenda_.observe(core_->state(), key, now_ns);
    fences_.observe(core_->state(), key);
  }
  std::vector<std::string> settled_hosts;
  for (const Decision& decision : batch) {
    for (const lease::Settled& settled : decision.outcome.settled)
      settled_hosts.push_back(views_.host_of_request(settled.request_id));
  }
  views_.publish(core_->state(), changes);
  for (const std::string& host_id : std::exchange(late_subscribers_, {})) views_.subscribe(host_id, &core_->state());
  committing_ = false;  // not before: what is decided next is not to be in these views
  note_heard(batch);
  answer(std::move(batch), settled_hosts);
  schedule_tick();
  pump();
}

// What a registration said counts once it is in the record: after a failed write the host says it again.
void Coordinator::note_heard(const Batch& batch) {
  for (const Decision& decision : batch) {
    const command::Command& command = decision.submitted.command;
    if (command.has_register_host() && decision.outcome.reply.status().code() == command::CODE_OK)
      heard_.insert(command.register_host().host().id());
  }
}

void Coordinator::answer(Batch batch, const std::vector<std::string>& settled_hosts) {
  auto host = settled_hosts.begin();
  for (Decision& decision : batch) {
    for (const record::Event& event : decision.outcome.events) {
      if (events_.event) events_.event(event);
    }
    decision.submitted.decided(std::move(decision.outcome.reply));
    for (const lease::Settled& settled : decision.outcome.settled) {
      if (events_.settled) events_.settled(host == settled_hosts.end() ? "" : *host, settled);
      if (host != settled_hosts.end()) ++host;
    }
  }
}

void Coordinator::batch_failed(const store::TxnResult& result, Batch batch) {
  committing_ = false;
  // What was decided in memory did not become the record (or nobody knows): forget it and read the record again. A
  // refused guard mostly means another coordinator, and then that read shows its key; but it may also be one of our own
  // transactions whose outcome was unknown, done after the record was read.
  log::warning("a decision could not be written", {{"ERROR", result.message}});
  trouble_ = result.message;
  if (result.outcome == store::Outcome::kUnknown) doubtful_ = !MUTANT(late_writes_may_follow);
  if (result.outcome == store::Outcome::kUnknown || result.cause == store::Cause::kGuard) {
    // Read back first; then the commands are applied to what is true. Each of them is idempotent.
    for (auto decision = batch.rbegin(); decision != batch.rend(); ++decision) {
      if (MUTANT(unknown_is_forgotten)) continue;
      if (++decision->submitted.attempts < kAttemptsMax) {
        submitted_.push_front(std::move(decision->submitted));
      } else {
        decision->submitted.decided(
            unavailable("it is not known whether this was written: " + result.message + "; ask again"));
      }
    }
  } else {
    for (Decision& decision : batch) decision.submitted.decided(unavailable(result.message));
  }
  if (MUTANT(unknown_is_not_read_back)) return pump();
  load();
}

// --- Renewals ----------------------------------------------------------------------------------------

void Coordinator::renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) {
  if (active()) return renewals_.arrive(std::move(renewal), std::move(answer));
  post([refusal = renewal_answer(renewal, false), answer = std::move(answer)] { answer(refusal); });
}

peer::RenewalAnswer Coordinator::renewal_answer(const peer::Renewal& renewal, bool ours) {
  peer::RenewalAnswer answer;
  answer.set_seq(renewal.seq());
  answer.set_term(term_);
  answer.set_ttl_ms(options_.timing.ttl_ms);
  answer.mutable_status()->set_code(command::CODE_UNAVAILABLE);
  if (!ours || !active()) {
    answer.mutable_status()->set_message("this host is not the coordinator now");
    return answer;
  }
  const auto host = core_->state().hosts.find(renewal.host_id());
  if (host == core_->state().hosts.end() || host->second.boot_id() != renewal.boot_id() || host->second.gone()) {
    // NOT_FOUND asks the host to register again.
    answer.mutable_status()->set_code(command::CODE_NOT_FOUND);
    answer.mutable_status()->set_message("host " + renewal.host_id() + " has no session under this boot id");
  } else if (host->second.machine_uuid() != renewal.machine_uuid()) {
    answer.mutable_status()->set_code(command::CODE_REFUSED);
    answer.mutable_status()->set_message("host " + renewal.host_id() +
                                         " runs on two machines: a cloned image? Give each its own host_id");
  } else {
    answer.mutable_status()->set_code(command::CODE_OK);
    lease::fill_answer(core_->state(), fences_, renewal, answer);
    sessions_->answered(renewal.host_id(), renewal.boot_id(), boottime_now_ns());
  }
  return answer;
}

std::optional<std::uint64_t> Coordinator::answered_ns(const record::Host& host) const {
  return sessions_ ? sessions_->last_answered_ns(host) : std::nullopt;
}

// --- What becomes due by itself ------------------------------------------------------------------------

void Coordinator::schedule_tick() {
  if (!active()) return;
  const std::uint64_t now_ns = boottime_now_ns();
  std::uint64_t next_ns = UINT64_MAX;
  if (const auto due = agenda_.next_ns(now_ns, wall_clock_unix_s())) next_ns = std::min(next_ns, *due);
  if (const auto due = sessions_->next_ns(core_->state())) next_ns = std::min(next_ns, *due);
  next_ns = std::max(next_ns, not_before_ns_);
  // Most decisions leave the next instant where it was: no timer is made anew then.
  if (next_ns == tick_at_ns_) return;
  tick_at_ns_ = next_ns == UINT64_MAX ? 0 : next_ns;
  tick_.cancel();
  if (tick_at_ns_ != 0) tick_ = run_after(next_ns > now_ns ? next_ns - now_ns : 0, [this] { tick(); });
}

void Coordinator::tick() {
  tick_at_ns_ = 0;
  if (!active()) return;
  const std::uint64_t now_ns = boottime_now_ns();
  std::vector<command::Command> due = agenda_.due(now_ns, wall_clock_unix_s());
  for (const auto& gone : sessions_->gone(core_->state(), now_ns)) {
    command::HostGone& c = *due.emplace_back().mutable_host_gone();
    c.set_host_id(gone.host_id);
    c.set_boot_id(gone.boot_id);
  }
  for (command::Command& command : due)
    submit(std::move(command), [](const std::optional<command::Reply>& /*nobody asked*/) {});
  // A HostGone that could not be written is due again at once: not faster than this.
  not_before_ns_ = now_ns + (due.empty() ? kNsPerMs : kRetryNs);
  tick_at_ns_ = not_before_ns_;
  tick_ = run_after(tick_at_ns_ - now_ns, [this] {
    tick_at_ns_ = 0;
    schedule_tick();
  });
}

}  // namespace usblease::cluster
