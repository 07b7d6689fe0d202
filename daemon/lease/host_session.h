// A host's view of its session with the coordinator: what was armed may work until when. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "daemon/lease/timing.h"
#include "peer.pb.h"

namespace usblease::lease {

using DeviceToken = std::pair<std::string, std::uint64_t>;

class HostSession {
 public:
  HostSession(Timing timing, std::string host_id, std::string boot_id, std::string machine_uuid);

  // A lease whose device is to be enforced here. limit_ms: the device's isolation, at least ttl. It begins with the
  // deadline of the last answered renewal: 0 (no right yet) when none was answered.
  void arm(const DeviceToken& lease, std::uint32_t limit_ms);
  void disarm(const DeviceToken& lease);

  // `now_ns` must be read before the message is sent. At most kInFlightMax renewals are remembered; older ones lapse.
  peer::Renewal renew(std::uint64_t now_ns);

  struct Orders {
    std::vector<std::pair<DeviceToken, std::uint64_t>> deadlines;  // later than before; CLOCK_BOOTTIME
    std::vector<DeviceToken> fence;
  };
  // An answer that is not OK, not to a remembered renewal, or older than the last one changes nothing but `fence`.
  Orders answer(const peer::RenewalAnswer& answer);

  // 0: not armed, or nothing answered yet.
  [[nodiscard]] std::uint64_t deadline(const DeviceToken& lease) const;
  // When a lease that is armed now would end: the session's right to begin something new.
  [[nodiscard]] std::uint64_t deadline_for_new(std::uint32_t limit_ms) const;

 private:
  struct Armed {
    std::uint32_t limit_ms = 0;
    std::uint64_t deadline_ns = 0;
  };
  Timing timing_;
  std::string host_id_;
  std::string boot_id_;
  std::string machine_uuid_;
  std::uint64_t next_seq_ = 1;
  std::map<std::uint64_t, std::uint64_t> sent_ns_;  // by seq
  std::uint64_t answered_sent_ns_ = 0;              // t0 of the newest answered renewal
  std::map<DeviceToken, Armed> armed_;
};

inline constexpr std::size_t kInFlightMax = 16;

}  // namespace usblease::lease
