// Renewals that wait for a read of the coordinator key begun after they arrived (daemon/lease/coordinator_session.h).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "common/main_loop.h"
#include "daemon/lease/coordinator_session.h"
#include "daemon/store/store.h"

namespace usblease::cluster {

class Renewals {
 public:
  // `still_ours` looks at the coordinator key as it was read; `answer_of` makes the answer, which is OK only if
  // `ours`; `deposed` is called after the answers when a read showed that the key is not ours.
  Renewals(store::Store& store, std::function<bool(const store::Entry&)> still_ours,
           std::function<peer::RenewalAnswer(const peer::Renewal&, bool ours)> answer_of,
           std::function<void()> deposed);

  void arrive(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer);
  // Answers all that wait now, as not ours.
  void refuse_all();

 private:
  struct Waiting {
    peer::Renewal renewal;
    std::function<void(peer::RenewalAnswer)> answer;
  };
  void read_if_due();
  void read_ended(const store::ReadResult& result);
  void answer(std::uint64_t id, bool ours);

  store::Store& store_;
  std::function<bool(const store::Entry&)> still_ours_;
  std::function<peer::RenewalAnswer(const peer::Renewal&, bool)> answer_of_;
  std::function<void()> deposed_;
  lease::RenewalGate gate_;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, Waiting> waiting_;
  SourceHandle read_timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster
