// When a candidate may stand for coordinator, and how long it waits before. Pure: what was seen comes in, random
// numbers too.
//
// Standing is always safe: the claim replaces exactly the coordinator key that was seen, in one transaction with the
// next term, and every write and every renewal's answer of a coordinator depends on its own key. These rules are for
// liveness: that somebody stands soon, and that two candidates do not take the key from each other in turn.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "peer.pb.h"

namespace usblease::lease {

// The coordinator key as the store shows it.
struct Holder {
  std::string host_id;
  std::string nonce;  // of the process that put it
  std::uint64_t term = 0;
  std::uint64_t revision = 0;  // at which it was put
};

enum class StandCause : std::uint8_t {
  kKeyGone,    // nobody has the key: its owner's lease in the store ran out
  kOwnFormer,  // an earlier process of this very host has it
  kVotedGone,  // a majority of the candidates says that the holder's process is gone, this one among them
  kTransfer,   // the holder itself says so
};

// The longest random wait before a claim: longer than one claim takes, so that mostly one stands. For kKeyGone all
// candidates begin at the same instant, told by the store.
inline constexpr std::uint32_t kKeyGoneWaitMaxMs = 300;
inline constexpr std::uint32_t kVotedGoneWaitMaxMs = 100;

// `random`: any 64 bits. 0 for a candidate that has no rival.
std::uint64_t stand_wait_ns(StandCause cause, std::size_t candidates, std::uint64_t random);

class ElectionRules {
 public:
  // `nonce`: of this process.
  ElectionRules(std::string host_id, std::string nonce) : host_id_(std::move(host_id)), nonce_(std::move(nonce)) {}

  // All hosts that may stand, this one among them.
  void set_candidates(std::set<std::string> candidates);
  [[nodiscard]] std::size_t candidates() const { return candidates_.size(); }

  // nullopt: there is no key. What is older than what was seen already changes nothing.
  void key_seen(std::optional<Holder> holder, std::uint64_t revision);
  [[nodiscard]] const std::optional<Holder>& holder() const { return holder_; }
  [[nodiscard]] bool is_own(const Holder& holder) const { return holder.nonce == nonce_; }

  // This host's own connection to `host_id` was reset or refused (gone), or stands (not gone). Of another host than the
  // holder it says nothing. Gives the vote that the other candidates are to be told, if it changed.
  std::optional<peer::GoneVote> connection(const std::string& host_id, bool gone);
  // From another candidate; of anybody else it is ignored.
  void vote(const std::string& from, const peer::GoneVote& vote);
  // False: `from` is not the holder of that term.
  bool told_to_stand(const std::string& from, std::uint64_t term);

  // Why this host may stand now; nullopt: it may not.
  [[nodiscard]] std::optional<StandCause> cause() const;

 private:
  [[nodiscard]] std::size_t gone_votes() const;

  std::string host_id_;
  std::string nonce_;
  std::set<std::string> candidates_;
  std::optional<Holder> holder_;
  std::uint64_t seen_revision_ = 0;
  bool known_ = false;        // the key was looked at
  bool holder_gone_ = false;  // this host's own verdict, begun after the holder was seen
  std::uint64_t transfer_term_ = 0;
  std::map<std::string, std::uint64_t> votes_;  // candidate → the term whose holder it calls gone; 0: none
};

}  // namespace usblease::lease
