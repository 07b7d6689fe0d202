#include "daemon/lease/election.h"

#include <algorithm>

#include "daemon/lease/timing.h"

namespace usblease::lease {

std::uint64_t stand_wait_ns(StandCause cause, std::size_t candidates, std::uint64_t random) {
  if (candidates <= 1) return 0;
  switch (cause) {
    case StandCause::kKeyGone:
      return random % (kKeyGoneWaitMaxMs * kNsPerMs + 1);
    case StandCause::kVotedGone:
      return random % (kVotedGoneWaitMaxMs * kNsPerMs + 1);
    case StandCause::kOwnFormer:
    case StandCause::kTransfer:
      return 0;
  }
  return 0;
}

void ElectionRules::set_candidates(std::set<std::string> candidates) {
  candidates_ = std::move(candidates);
  std::erase_if(votes_, [&](const auto& vote) { return !candidates_.contains(vote.first); });
}

void ElectionRules::key_seen(std::optional<Holder> holder, std::uint64_t revision) {
  if (known_ && revision < seen_revision_) return;
  known_ = true;
  seen_revision_ = revision;
  const bool same = holder && holder_ && holder->revision == holder_->revision;
  holder_ = std::move(holder);
  if (!same) holder_gone_ = false;  // what this host saw of the one before says nothing about this one
}

std::optional<peer::GoneVote> ElectionRules::connection(const std::string& host_id, bool gone) {
  if (!holder_ || holder_->host_id != host_id || host_id == host_id_ || holder_gone_ == gone) return std::nullopt;
  holder_gone_ = gone;
  peer::GoneVote vote;
  vote.set_host_id(holder_->host_id);
  vote.set_term(holder_->term);
  vote.set_gone(gone);
  return vote;
}

void ElectionRules::vote(const std::string& from, const peer::GoneVote& vote) {
  if (!candidates_.contains(from) || from == host_id_) return;
  std::uint64_t& term = votes_[from];
  if (vote.gone()) {
    term = vote.term();
  } else if (term == vote.term()) {
    term = 0;
  }
}

bool ElectionRules::told_to_stand(const std::string& from, std::uint64_t term) {
  if (!holder_ || holder_->host_id != from || holder_->term != term || term == 0) return false;
  transfer_term_ = term;
  return true;
}

std::size_t ElectionRules::gone_votes() const {
  const auto others = std::count_if(votes_.begin(), votes_.end(), [&](const auto& vote) {
    return vote.second == holder_->term && vote.first != holder_->host_id;
  });
  return static_cast<std::size_t>(others) + (holder_gone_ ? 1 : 0);
}

std::optional<StandCause> ElectionRules::cause() const {
  if (!known_ || !candidates_.contains(host_id_)) return std::nullopt;
  if (!holder_) return StandCause::kKeyGone;
  if (is_own(*holder_)) return std::nullopt;
  if (holder_->host_id == host_id_) return StandCause::kOwnFormer;
  if (transfer_term_ != 0 && transfer_term_ == holder_->term) return StandCause::kTransfer;
  if (holder_gone_ && gone_votes() * 2 > candidates_.size()) return StandCause::kVotedGone;
  return std::nullopt;
}

}  // namespace usblease::lease
