// Keeps an etcd of our own small: drops old history, gives unused pages back to the disk one member after the other,
// and ends the alarm "no space" when there is room again. Only the coordinator's store does it.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>

#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_loop.h"

namespace usblease::store {

// On the loop's thread.
class EtcdUpkeep {
 public:
  EtcdUpkeep(EtcdLoop& loop, EtcdEndpoints& endpoints, const EtcdOptions& options);

  void set(bool on);

 private:
  struct Sample {
    EtcdLoop::Clock::time_point when;
    std::uint64_t revision = 0;
  };

  void round();
  void compact();
  void next_member();
  void defragment(const EtcdEndpointPtr& endpoint);
  void end_space_alarm();
  void rest();
  [[nodiscard]] std::uint64_t old_revision();
  [[nodiscard]] bool wasteful(const EtcdEndpoint& endpoint) const;
  [[nodiscard]] bool all_well() const;
  [[nodiscard]] bool in_vain() const;

  EtcdLoop& loop_;
  EtcdEndpoints& endpoints_;
  const std::chrono::milliseconds every_;
  const std::chrono::milliseconds history_;
  const std::uint64_t defragment_bytes_;
  bool on_ = false;
  bool busy_ = false;                 // a round is under way
  std::set<std::string> freed_;       // defragmented since the alarm
  std::uint64_t alarm_revision_ = 0;  // compacted to when the last alarm was ended
  EtcdLoop::Clock::time_point alarm_ended_;
  std::deque<Sample> samples_;
  std::uint64_t compacted_ = 0;
  EtcdTimer next_;
};

}  // namespace usblease::store
