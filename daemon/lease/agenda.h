// What the coordinator must do later: graces, waits, and ends that were asked for. Soft state, built anew by every new
// coordinator: a grace or a wait then begins again, which delays, and frees nothing early. Pure.
//
// Locks alone are freed by time, because of a lock only this is promised: at most one holder of an unexpired token.
// Once the order to end it is on record no renewal of it is answered any more: not by this coordinator, whose answers
// leave it out, and not by an earlier one, whose answers need a read of the key that it had lost. So its last deadline
// was computed from a renewal that was sent before this coordinator saw the order, and ttl × (1 + drift) + grace after
// that it has passed on its host's clock (timing.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "command.pb.h"
#include "daemon/lease/state.h"
#include "daemon/lease/timing.h"

namespace usblease::lease {

class Agenda {
 public:
  explicit Agenda(Timing timing = {}) : timing_(timing) {}

  // Call for every changed key of the state (device/…, request/…).
  void observe(const State& state, const std::string& key, std::uint64_t now_ns);

  // After a load: what the state does not have any more is forgotten, what is known already goes on.
  void observe_all(const State& state, std::uint64_t now_ns);

  // The commands that are due; each is due again only after its record was observed again or retry_ns has passed.
  std::vector<command::Command> due(std::uint64_t now_ns, std::uint64_t now_unix_s);

  // When to call due() next. `until` is a time of day: the way there is measured now and measured again then.
  [[nodiscard]] std::optional<std::uint64_t> next_ns(std::uint64_t now_ns, std::uint64_t now_unix_s) const;

 private:
  struct Grace {
    std::uint64_t token = 0;
    std::uint32_t grace_ms = 0;
    std::uint64_t due_ns = 0;
  };
  struct Until {
    std::uint64_t token = 0;
    std::uint64_t unix_s = 0;
    std::uint64_t not_before_ns = 0;
  };
  struct Expiry {
    record::Instance instance;
    std::uint64_t token = 0;
    std::uint64_t due_ns = 0;
  };
  void observe_lock(const record::Lease* lease, const std::string& name, std::uint64_t now_ns);
  void observe_device(const record::Device* device, const std::string& name, std::uint64_t now_ns);
  void observe_request(const record::Request* request, const std::string& id, std::uint64_t now_ns);

  Timing timing_;
  std::map<std::string, Grace> graces_;            // by device
  std::map<std::string, Expiry> expiries_;         // by lock: when the token of one that is to end has expired
  std::map<std::string, Until> untils_;            // by device
  std::map<std::string, std::uint64_t> waits_ns_;  // by request: when its wait is over
};

}  // namespace usblease::lease
