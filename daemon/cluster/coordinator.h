// The coordinator: the single writer of the store. Once its host has won an election (election.h) it holds the whole
// state in memory, decides with the lease core, and commits what the core asks for: the decisions that wait together go
// into one transaction.
//
// Every transaction is guarded by "the coordinator key is still the one that I won" and by the revisions of the records
// that it changes. A refused guard means that somebody else is the coordinator: this one stops at once.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/election.h"
#include "daemon/cluster/renewals.h"
#include "daemon/cluster/views.h"
#include "daemon/lease/agenda.h"
#include "daemon/lease/coordinator_session.h"
#include "daemon/lease/core.h"
#include "daemon/lease/timing.h"
#include "daemon/store/store.h"

namespace usblease::cluster {

struct CoordinatorOptions {
  std::string host_id;
  std::string boot_id;
  std::string cluster_id;
  lease::Timing timing;
};

struct CoordinatorEvents {
  // Elected and loaded, or no longer. The whole views went out before.
  std::function<void(bool active)> active;
  // After every load, also one that only follows a failed write: who waited for the state can have it.
  std::function<void()> loaded;
  std::function<void(const std::string& host_id, const peer::HostView&)>
      view;  // before the replies of the same decision
  std::function<void(const record::Event&)> event;
  // host_id: whose request it is; empty: not known, so whoever waits for it may be anywhere.
  std::function<void(const std::string& host_id, const lease::Settled&)> settled;
  // Who has the coordinator key, at each change; term 0: nobody.
  std::function<void(const std::string& host_id, std::uint64_t term)> holder;
  std::function<void(const peer::GoneVote&)> tell_candidates;
};

class Coordinator {
 public:
  // nullopt: this host is not the coordinator, and the command may or may not have been decided. To be sent as it is to
  // whoever is the coordinator now: every command is idempotent.
  using Decided = std::function<void(std::optional<command::Reply>)>;

  Coordinator(store::Store& store, CoordinatorOptions options, CoordinatorEvents events);

  void start() { election_.start(); }

  // The reply comes when the decision is on disk, exactly once, never inside the call. While the state is being read
  // the command waits, at most kSubmitWait, then CODE_UNAVAILABLE.
  void submit(command::Command command, Decided decided);
  void renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer);

  // Sends the whole view of one host through events.view, now or once there is a state, and changes from then on.
  // What is decided and not written yet is in no view.
  void subscribe(const std::string& host_id);
  void unsubscribe(const std::string& host_id);

  // Decides nothing more for a moment: another candidate was told to take over. Goes on if none does.
  void stand_down();

  [[nodiscard]] Election& election() { return election_; }
  // The state as decided so far; nullptr while not active. Valid until the next return to the main loop.
  [[nodiscard]] const lease::State* state() const { return active() ? &core_->state() : nullptr; }
  [[nodiscard]] bool active() const { return core_ != nullptr && phase_ == Phase::kActive; }
  // Elected; perhaps not active yet.
  [[nodiscard]] bool holding() const { return phase_ != Phase::kFollowing; }
  [[nodiscard]] std::uint64_t term() const { return term_; }
  [[nodiscard]] std::uint64_t revision() const { return revision_; }
  // When the last renewal of this host was answered (CLOCK_BOOTTIME); nullopt: not since this election.
  [[nodiscard]] std::optional<std::uint64_t> answered_ns(const record::Host& host) const;
  // A transaction may still be done of which nobody knows whether it was, so the record may not be what is held here.
  [[nodiscard]] bool doubtful() const { return doubtful_; }
  // Why it is not active, or the last failed write.
  [[nodiscard]] const std::string& trouble() const { return trouble_; }

 private:
  enum class Phase : std::uint8_t { kFollowing, kLoading, kActive };
  struct Submitted {
    command::Command command;
    Decided decided;
    std::uint64_t expires_ns = 0;
    int attempts = 0;
  };
  struct Decision {
    Submitted submitted;
    lease::Decision outcome;
  };
  using Batch = std::vector<Decision>;

  ElectionEvents election_events();
  void won(std::uint64_t term);
  void lost(const std::string& why);
  [[nodiscard]] bool is_my_key(const store::Entry& entry) const;
  void load();
  void rule_out_late_writes(const store::ReadResult& all);
  void loaded(const store::ReadResult& all);
  void load_later(const std::string& why);
  void note_trouble(const std::string& why);

  void pump();
  Changes decide(Batch& batch);
  [[nodiscard]] bool still_gone(const command::HostGone& gone) const;
  store::Txn make_txn(const Changes& changes) const;
  void committed(const store::TxnResult& result, Batch batch, const Changes& changes);
  void batch_failed(const store::TxnResult& result, Batch batch);
  void note_heard(const Batch& batch);
  void answer(Batch batch, const std::vector<std::string>& settled_hosts);
  void expire_submitted();
  void schedule_expiry();

  peer::RenewalAnswer renewal_answer(const peer::Renewal& renewal, bool ours);
  void schedule_tick();
  void tick();

  store::Store& store_;
  CoordinatorOptions options_;
  CoordinatorEvents events_;
  Election election_;
  Phase phase_ = Phase::kFollowing;
  std::uint64_t term_ = 0;
  std::uint64_t revision_ = 0;
  std::string trouble_;
  std::unique_ptr<lease::Core> core_;
  std::map<std::string, std::uint64_t> revisions_;  // of every record, as last read or written
  std::optional<lease::CoordinatorSessions> sessions_;
  std::set<std::string> heard_;  // hosts that have registered since this election
  lease::Agenda agenda_;
  lease::Fences fences_;
  Views views_;
  std::set<std::string> late_subscribers_;  // they came while a transaction was under way
  Renewals renewals_;
  std::deque<Submitted> submitted_;
  bool committing_ = false;
  bool doubtful_ = false;
  bool announced_ = false;           // events_.active(true) was said of this election
  std::uint64_t elections_won_ = 0;  // tells answers to calls of an earlier election
  SourceHandle load_retry_;
  SourceHandle standing_down_;
  SourceHandle expiry_;
  std::uint64_t not_before_ns_ = 0;  // of the next tick: what could not be written is due at once again
  SourceHandle tick_;
  std::uint64_t tick_at_ns_ = 0;  // 0: not scheduled
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster
