// The coordinator's view of all hosts' sessions: when a renewal may be answered, with what, and which hosts are gone.
// Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/lease/state.h"
#include "daemon/lease/timing.h"
#include "peer.pb.h"

namespace usblease::lease {

// Renewals wait here for a linearizable read of the coordinator key that began after they arrived. One read serves all
// that wait; a second one begins at the earliest kReadGapNs after the first.
class RenewalGate {
 public:
  // `id` is the caller's name for the renewal.
  void arrive(std::uint64_t id);

  // When a read should begin: now_ns or later; nullopt: none is needed, or one is under way.
  [[nodiscard]] std::optional<std::uint64_t> next_read_ns() const;
  void read_began(std::uint64_t now_ns);
  // The renewals that arrived before that read began. Their answers are OK only if the read showed our own key.
  std::vector<std::uint64_t> read_ended();

 private:
  std::vector<std::uint64_t> waiting_;  // arrived after the running read began
  std::vector<std::uint64_t> covered_;  // by the running read
  bool reading_ = false;
  std::uint64_t last_began_ns_ = 0;
};

// Which devices are being fenced, by home: few of many, so that a renewal does not look at all of them.
class Fences {
 public:
  // Call for every changed key of the state (device/…).
  void observe(const State& state, const std::string& key);
  void observe_all(const State& state);
  [[nodiscard]] const std::set<std::string>& at(const std::string& home) const;

 private:
  void observe_device(const std::string& name, const record::Device* device);
  std::map<std::string, std::set<std::string>> devices_;  // by home
  std::map<std::string, std::string> homes_;              // by device
};

// What the answer says about leases: renewed are those that the record still gives to this host's instances; everything
// else that the host has armed is to be fenced, and so is every lease at this home that is being fenced.
void fill_answer(const State& state, const Fences& fences, const peer::Renewal& renewal, peer::RenewalAnswer& answer);

class CoordinatorSessions {
 public:
  CoordinatorSessions(Timing timing, std::uint64_t elected_ns) : timing_(timing), elected_ns_(elected_ns) {}

  // A renewal was answered with OK. Call it also when a host has registered: its session begins then, and before its
  // first renewal it would count as gone since the election.
  void answered(const std::string& host_id, const std::string& boot_id, std::uint64_t now_ns);

  struct Gone {
    std::string host_id;
    std::string boot_id;
  };
  // Hosts of the record that count as gone at now_ns and are not marked so.
  [[nodiscard]] std::vector<Gone> gone(const State& state, std::uint64_t now_ns) const;
  [[nodiscard]] std::optional<std::uint64_t> next_ns(const State& state) const;
  // nullopt: no renewal of this boot of the host was answered, nor did it register.
  [[nodiscard]] std::optional<std::uint64_t> last_answered_ns(const record::Host& host) const;

 private:
  struct Last {
    std::string boot_id;
    std::uint64_t answered_ns = 0;
  };
  [[nodiscard]] std::uint64_t gone_at_ns(const record::Host& host) const;
  Timing timing_;
  std::uint64_t elected_ns_;
  std::map<std::string, Last> last_;
};

}  // namespace usblease::lease
