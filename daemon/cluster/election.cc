#include "daemon/cluster/election.h"

#include <utility>

#include "common/log.h"
#include "common/mutant.h"
#include "common/random.h"
#include "common/text.h"
#include "daemon/lease/keys.h"
#include "daemon/lease/timing.h"

namespace usblease::cluster {
namespace {

using lease::kNsPerMs;

// After a failed look or claim: this, and at random up to as much again, so that candidates do not fail in step.
constexpr std::uint64_t kRetryNs = 100 * kNsPerMs;
// A watch may lag without bound: besides it, candidates look by themselves.
constexpr std::uint64_t kLookNs = 5'000 * kNsPerMs;

// A key that does not parse counts as one of nobody: it is replaced like one, and its guards still hold.
lease::Holder parse_holder(const std::string& value, std::uint64_t revision) {
  record::Coordinator parsed;
  lease::Holder holder;
  if (parsed.ParseFromString(value)) {
    holder.host_id = parsed.host_id();
    holder.nonce = parsed.nonce();
    holder.term = parsed.term();
  }
  holder.revision = revision;
  return holder;
}

}  // namespace

Election::Election(store::Store& store, std::string host_id, std::string boot_id, ElectionEvents events)
    : store_(store),
      host_id_(std::move(host_id)),
      boot_id_(std::move(boot_id)),
      nonce_(random_hex(8)),
      events_(std::move(events)),
      rules_(host_id_, nonce_) {
  rules_.set_candidates({host_id_});
}

Election::~Election() { cancel_watch(); }

void Election::start() { look(); }

void Election::set_candidates(std::set<std::string> candidates) {
  rules_.set_candidates(std::move(candidates));
  consider();
}

// --- What is known of the key ------------------------------------------------------------------------

void Election::look() {
  if (std::exchange(looking_, true)) return;
  store_.read(lease::kCoordinatorKey, [this, alive = std::weak_ptr(alive_)](const store::ReadResult& result) {
    if (alive.expired()) return;
    looking_ = false;
    looked(result);
  });
}

void Election::looked(const store::ReadResult& result) {
  if (!result.ok) return look_later("cannot read the store: " + result.message);
  again_ = run_after(kLookNs, [this] { look(); });
  if (!watch_) {
    watch_ = store_.watch(lease::kCoordinatorKey, result.revision + 1,
                          [this, alive = std::weak_ptr(alive_)](const store::WatchUpdate& update) {
                            if (!alive.expired()) on_watch(update);
                          });
  }
  std::optional<lease::Holder> holder;
  for (const store::Entry& entry : result.entries) {
    if (entry.key == lease::kCoordinatorKey) holder = parse_holder(entry.value, entry.mod_revision);
  }
  saw(std::move(holder), result.revision);
}

void Election::on_watch(const store::WatchUpdate& update) {
  if (update.what == store::WatchUpdate::What::kCompacted) {
    cancel_watch();
    return look();
  }
  if (update.key != lease::kCoordinatorKey) return;
  std::optional<lease::Holder> holder;
  if (update.value) holder = parse_holder(*update.value, update.revision);
  saw(std::move(holder), update.revision);
}

void Election::saw(std::optional<lease::Holder> holder, std::uint64_t revision) {
  // The watch may still tell of what was before our own key.
  if (revision < key_revision_) return;
  rules_.key_seen(std::move(holder), revision);
  const auto& now = rules_.holder();
  if (holding() && (!now || now->revision != key_revision_))
    lose(now ? "host " + now->host_id + " became the coordinator" : "the coordinator key is gone from the store");
  // Our own claim, whose outcome was unknown or has not come yet: it was done.
  if (!holding() && now && rules_.is_own(*now)) win(now->term, now->revision);
  std::pair<std::string, std::uint64_t> told;
  if (now) told = {now->host_id, now->term};
  if (told != told_) {
    told_ = told;
    if (events_.holder) events_.holder(told.first, told.second);
  }
  consider();
}

void Election::look_later(const std::string& why) {
  if (events_.trouble) events_.trouble(why);
  again_ = run_after(kRetryNs + random_bits() % kRetryNs, [this] { look(); });
}

void Election::cancel_watch() {
  if (watch_) store_.cancel_watch(*std::exchange(watch_, std::nullopt));
}

// --- Standing ------------------------------------------------------------------------------------------

std::optional<lease::StandCause> Election::why_stand() const {
  if (MUTANT(equal_timeouts_repeat)) return lease::StandCause::kKeyGone;
  return rules_.cause();
}

void Election::consider() {
  const auto cause = why_stand();
  if (!cause || holding()) {
    wait_.cancel();
    return;
  }
  // A transfer does not wait for what was to happen anyway.
  const bool now = *cause == lease::StandCause::kTransfer || *cause == lease::StandCause::kOwnFormer;
  if (claiming_ || (wait_ && !now)) return;
  const std::uint64_t random = MUTANT(equal_timeouts_repeat) ? lease::kKeyGoneWaitMaxMs * kNsPerMs : random_bits();
  const std::uint64_t wait_ns = lease::stand_wait_ns(*cause, rules_.candidates(), random);
  wait_.cancel();
  if (wait_ns == 0) return stand();
  wait_ = run_after(wait_ns, [this] {
    wait_.cancel();
    if (why_stand() && !holding()) stand();
  });
}

void Election::stand() {
  if (std::exchange(claiming_, true)) return;
  store_.read(lease::kTermKey, [this, alive = std::weak_ptr(alive_)](const store::ReadResult& result) {
    if (alive.expired()) return;
    // What was seen meanwhile may have taken away the reason.
    if (result.ok && why_stand() && !holding()) return claim(result);
    claiming_ = false;
    if (!result.ok) look_later("cannot read the store: " + result.message);
  });
}

void Election::claim(const store::ReadResult& read) {
  record::Term term;
  std::uint64_t term_revision = 0;
  for (const store::Entry& entry : read.entries) {
    if (entry.key != lease::kTermKey) continue;
    if (!term.ParseFromString(entry.value)) {
      claiming_ = false;
      return look_later("the record term does not parse");
    }
    term_revision = entry.mod_revision;
  }
  const auto& holder = rules_.holder();
  term.set_term(std::max(term.term(), holder ? holder->term : 0) + (MUTANT(term_stays) ? 0 : 1));
  record::Coordinator self;
  self.set_host_id(host_id_);
  self.set_boot_id(boot_id_);
  self.set_term(term.term());
  self.set_nonce(nonce_);
  store::Txn txn;
  using What = store::Guard::What;
  txn.guards.push_back({lease::kCoordinatorKey, What::kModRevision, holder ? holder->revision : 0});
  txn.guards.push_back({lease::kTermKey, What::kModRevision, term_revision});
  txn.writes.push_back({lease::kCoordinatorKey, self.SerializeAsString(), true});
  txn.writes.push_back({lease::kTermKey, term.SerializeAsString(), false});
  store_.commit(std::move(txn),
                [this, alive = std::weak_ptr(alive_), number = term.term()](const store::TxnResult& result) {
                  if (!alive.expired()) claimed(result, number);
                });
}

void Election::claimed(const store::TxnResult& result, std::uint64_t term) {
  claiming_ = false;
  if (result.outcome == store::Outcome::kDone) {
    lease::Holder self;
    self.host_id = host_id_;
    self.nonce = nonce_;
    self.term = term;
    self.revision = result.revision;
    return saw(self, result.revision);
  }
  // Somebody was faster: look who. After an unknown outcome the look shows whether it was done.
  if (result.cause == store::Cause::kGuard) return look();
  look_later("cannot be elected: " + result.message);
}

void Election::win(std::uint64_t term, std::uint64_t key_revision) {
  key_revision_ = key_revision;
  wait_.cancel();
  log::info("elected coordinator", {{"HOST", host_id_}, {"TERM", std::to_string(term)}});
  if (events_.won) events_.won(term, key_revision);
}

void Election::lose(const std::string& why) {
  key_revision_ = 0;
  log::warning("no longer the coordinator", {{"HOST", host_id_}, {"ERROR", why}});
  if (events_.lost) events_.lost(why);
}

void Election::deposed(const std::string& why) {
  if (!holding()) return;
  lose(why);
  look();
}

// --- What others say -----------------------------------------------------------------------------------

void Election::connection_up(const std::string& host_id) {
  const auto vote = rules_.connection(host_id, false);
  if (vote && events_.tell_candidates) events_.tell_candidates(*vote);
  consider();
}

void Election::connection_down(const std::string& host_id, DownReason reason) {
  // Only these two prove that the process is gone; everything else may be the network between us.
  if (reason != DownReason::kRefused && reason != DownReason::kReset) return;
  const auto vote = rules_.connection(host_id, true);
  if (vote && events_.tell_candidates) events_.tell_candidates(*vote);
  consider();
}

void Election::vote(const std::string& from, const peer::GoneVote& vote) {
  rules_.vote(from, vote);
  consider();
}

bool Election::told_to_stand(const std::string& from, std::uint64_t term) {
  if (!rules_.told_to_stand(from, term)) return false;
  consider();
  return true;
}

}  // namespace usblease::cluster
