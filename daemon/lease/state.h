// The whole record of the cluster in memory, as the coordinator holds it. What is in the store is exactly what
// encode() gives; load() of that gives an equal state.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/error.h"
#include "record.pb.h"

namespace usblease::lease {

// One key of the store. No value: it is (to be) deleted.
struct Change {
  std::string key;
  std::optional<std::string> value;
};

struct State {
  record::Meta meta;
  std::map<std::string, record::Device> devices;    // by name
  std::map<std::string, record::Request> requests;  // by id
  std::map<std::string, record::Host> hosts;        // by id
  std::map<std::uint64_t, record::Event> events;    // by seq, the last kEventsMax
  std::map<std::string, record::Member> members;    // by host id; none: a cluster of one
  std::map<std::string, record::JoinToken> tokens;  // by id

  // Not in the record: hosts that have not registered with this coordinator yet. Their floors may say that the store
  // went back in time, so nothing is granted at them before they have spoken.
  std::set<std::string> unheard;

  // Next number for events and for places in the queue.
  [[nodiscard]] std::uint64_t next_seq() const;
};

// The state of a new cluster.
State make_state(const std::string& cluster_id);

// From all keys of the store. Keys of the election are ignored. kRefused: a record that does not parse, contradicts its
// key, is out of bounds or of a newer format; the message names the key.
Result<State> load(const std::vector<std::pair<std::string, std::string>>& entries);

// All records, by key.
std::vector<Change> encode(const State& state);

// The present value of one key of the state.
Change encode_key(const State& state, const std::string& key);

}  // namespace usblease::lease
