// The lease core: decides everything that the store records. Pure and deterministic: no clock, no socket, no file, no
// threads, no randomness, no GLib. A state and a command give the next state and what to write.
//
// The life of a lease (docs/architecture.md, "Fence before grant"):
//
//   free ──grant──▶ granted ──revoke with grace──▶ revoking ──grace over──▶ fencing ──confirmed,──▶ free
//                      └──release, until, revoke, guest's host gone────────────▲     or instance ended
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "command.pb.h"
#include "daemon/lease/state.h"
#include "daemon/lease/versions.h"

namespace usblease::lease {

// What a decision may read besides the state.
struct Context {
  std::uint64_t now_unix_s = 0;  // for the audit trail and for `until`; never for exclusion
};

// The end of a request that had waited.
struct Settled {
  std::string request_id;
  command::Reply reply;
};

struct Decision {
  command::Reply reply;               // of the command itself
  std::vector<Change> changes;        // what to write; each key once; empty: nothing changed
  std::vector<record::Event> events;  // also in changes
  std::vector<Settled> settled;
};

class Core {
 public:
  // `versions`: what this program understands; another one than own_versions() only in tests. To outlive the core.
  explicit Core(State state, const Versions& versions = own_versions())
      : state_(std::move(state)), versions_(&versions) {}
  // `heard`: hosts whose floors this coordinator knows already. A host that the record knows and that is not among them
  // has to register before anything is granted at it.
  Core(State state, const std::set<std::string>& heard);

  // Applies one command. Every input is checked (validate.h); a refused command changes nothing.
  Decision apply(const command::Command& command, const Context& context);

  [[nodiscard]] const State& state() const { return state_; }

 private:
  State state_;
  const Versions* versions_;
};

// Requests that name `device`, in the order in which they would be granted.
std::vector<const record::Request*> queue_of(const State& state, const std::string& device);

// How many requests name each device that any names: one pass over the requests, for whoever looks at all devices.
std::map<std::string, std::size_t> queue_lengths(const State& state);

enum class Availability : std::uint8_t { kFree, kLeased, kAbsent, kConflict };
Availability availability(const State& state, const record::Device& device);

// Devices that are leased to guests of this host, or whose leased instance is there.
std::vector<std::string> leased_devices_at(const State& state, const std::string& host_id);

// What stands in the way of `request` now, a line a device that is not free for it.
std::vector<command::Obstacle> obstacles_of(const State& state, const record::Request& request);

}  // namespace usblease::lease
