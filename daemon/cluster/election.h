// This host's part in elections: watches the coordinator key, stands when the rules (daemon/lease/election.h) say so,
// and tells when it won and when it lost. One for each candidate; a plain host has none.
//
// The key and its term are written in one transaction, which replaces exactly the key that was seen. An election that
// is won is known by the key's mod revision: nobody writes the key twice, so whoever finds another one there is
// deposed. (Its create revision would not do: a key that is replaced keeps it.)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "common/main_loop.h"
#include "daemon/cluster/transport.h"
#include "daemon/lease/election.h"
#include "daemon/store/store.h"

namespace usblease::cluster {

struct ElectionEvents {
  std::function<void(std::uint64_t term, std::uint64_t key_revision)> won;
  std::function<void(const std::string& why)> lost;                            // only after won
  std::function<void(const std::string& host_id, std::uint64_t term)> holder;  // at each change; term 0: nobody
  std::function<void(const peer::GoneVote&)> tell_candidates;
  std::function<void(const std::string& why)> trouble;  // it cannot find out, or cannot stand, and tries again
};

class Election {
 public:
  Election(store::Store& store, std::string host_id, std::string boot_id, ElectionEvents events);
  ~Election();
  Election(const Election&) = delete;
  Election& operator=(const Election&) = delete;

  // Begins with this host as the only candidate.
  void start();
  void set_candidates(std::set<std::string> candidates);

  // What others say, and what the transport sees.
  void connection_up(const std::string& host_id);
  void connection_down(const std::string& host_id, DownReason reason);
  void vote(const std::string& from, const peer::GoneVote& vote);
  // From the coordinator. False: `from` is not the coordinator of that term.
  bool told_to_stand(const std::string& from, std::uint64_t term);
  // The coordinator found its key replaced or gone: by a refused guard, or by a read.
  void deposed(const std::string& why);

  [[nodiscard]] bool holding() const { return key_revision_ != 0; }
  [[nodiscard]] std::uint64_t key_revision() const { return key_revision_; }
  [[nodiscard]] const std::optional<lease::Holder>& holder() const { return rules_.holder(); }
  [[nodiscard]] std::size_t candidates() const { return rules_.candidates(); }

 private:
  void look();
  void looked(const store::ReadResult& result);
  void on_watch(const store::WatchUpdate& update);
  void saw(std::optional<lease::Holder> holder, std::uint64_t revision);
  [[nodiscard]] std::optional<lease::StandCause> why_stand() const;
  void consider();
  void stand();
  void claim(const store::ReadResult& term);
  void claimed(const store::TxnResult& result, std::uint64_t term);
  void win(std::uint64_t term, std::uint64_t key_revision);
  void lose(const std::string& why);
  void look_later(const std::string& why);
  void cancel_watch();

  store::Store& store_;
  const std::string host_id_;
  const std::string boot_id_;
  const std::string nonce_;
  ElectionEvents events_;
  lease::ElectionRules rules_;
  std::uint64_t key_revision_ = 0;  // of the key that we won; 0: we are not the coordinator
  bool looking_ = false;
  bool claiming_ = false;
  std::optional<store::WatchId> watch_;
  std::pair<std::string, std::uint64_t> told_;  // events_.holder
  SourceHandle wait_;                           // before a claim
  SourceHandle again_;                          // the next look
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster
