#include "daemon/lease/state.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <array>
#include <cstdio>
#include <string_view>

#include "daemon/lease/check_state.h"
#include "daemon/lease/keys.h"

namespace usblease::lease {
namespace {

// Deterministic: equal records are equal bytes on every machine (none has a map field, but the rule is cheap).
std::string serialize(const google::protobuf::MessageLite& message) {
  std::string out;
  google::protobuf::io::StringOutputStream stream(&out);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return out;
}

template <typename Map>
std::optional<std::string> value_in(const Map& map, const typename Map::key_type& name) {
  const auto found = map.find(name);
  if (found == map.end()) return std::nullopt;
  return serialize(found->second);
}

bool take_prefix(std::string_view& key, std::string_view prefix) {
  if (key.substr(0, prefix.size()) != prefix) return false;
  key.remove_prefix(prefix.size());
  return true;
}

tl::unexpected<Error> bad_record(const std::string& key, const std::string& why) {
  return fail(ErrorCode::kRefused, "the record " + key + " in the store " + why +
                                       "; restore a backup, or see docs/store.md for how to leave it out");
}

// Parses into map[name_of(record)]; the key must say the same name.
template <typename Record, typename Map, typename NameOf>
Result<void> insert(Map& map, const std::string& key, std::string_view name, const std::string& value,
                    std::size_t bound, NameOf name_of) {
  Record record;
  if (!record.ParseFromString(value)) return bad_record(key, "does not parse");
  if (name_of(record) != name) return bad_record(key, "is about something else than its key");
  if (map.size() >= bound) return bad_record(key, "is one more than the allowed " + std::to_string(bound));
  if constexpr (std::is_same_v<typename Map::key_type, std::string>) {
    map.emplace(std::string(name), std::move(record));
  } else {
    map.emplace(record.seq(), std::move(record));
  }
  return {};
}

Result<void> load_one(State& state, const std::string& key, const std::string& value) {
  std::string_view rest = key;
  if (key == kMetaKey) {
    if (!state.meta.ParseFromString(value)) return bad_record(key, "does not parse");
    if (state.meta.format() > kRecordFormat) return bad_record(key, "was written by a newer usblease");
    return {};
  }
  if (key == kCoordinatorKey || key == kTermKey || key == kAuthorityKey || key == kRevocationsKey) return {};
  if (take_prefix(rest, kDevicePrefix)) {
    return insert<record::Device>(state.devices, key, rest, value, kDevicesMax, [](const auto& r) { return r.name(); });
  }
  if (take_prefix(rest, kRequestPrefix)) {
    return insert<record::Request>(state.requests, key, rest, value, kRequestsMax,
                                   [](const auto& r) { return r.id(); });
  }
  if (take_prefix(rest, kHostPrefix)) {
    return insert<record::Host>(state.hosts, key, rest, value, kHostsMax, [](const auto& r) { return r.id(); });
  }
  if (take_prefix(rest, kEventPrefix)) {
    return insert<record::Event>(state.events, key, rest, value, kEventsMax + 1,
                                 [](const auto& r) { return event_key(r.seq()).substr(6); });
  }
  if (take_prefix(rest, kMemberPrefix)) {
    return insert<record::Member>(state.members, key, rest, value, kMembersMax,
                                  [](const auto& r) { return r.host_id(); });
  }
  if (take_prefix(rest, kTokenPrefix)) {
    return insert<record::JoinToken>(state.tokens, key, rest, value, kJoinTokensMax,
                                     [](const auto& r) { return r.id(); });
  }
  return bad_record(key, "is not known to this version");
}

}  // namespace

std::string device_key(const std::string& name) { return kDevicePrefix + name; }
std::string request_key(const std::string& id) { return kRequestPrefix + id; }
std::string host_key(const std::string& id) { return kHostPrefix + id; }
std::string member_key(const std::string& host_id) { return kMemberPrefix + host_id; }
std::string token_key(const std::string& id) { return kTokenPrefix + id; }

std::string event_key(std::uint64_t seq) {
  std::array<char, 24> digits{};
  std::snprintf(digits.data(), digits.size(), "%020llu", static_cast<unsigned long long>(seq));
  return std::string(kEventPrefix) + digits.data();
}

std::uint64_t State::next_seq() const {
  // Every queued request has an event of its own, so events alone tell how far the numbers went.
  return events.empty() ? 1 : events.rbegin()->first + 1;
}

State make_state(const std::string& cluster_id) {
  State state;
  state.meta.set_format(kRecordFormat);
  state.meta.set_cluster_id(cluster_id);
  return state;
}

Result<State> load(const std::vector<std::pair<std::string, std::string>>& entries) {
  State state;
  for (const auto& [key, value] : entries) {
    if (auto loaded = load_one(state, key, value); !loaded) return tl::unexpected(loaded.error());
  }
  if (auto checked = check_state(state); !checked) return tl::unexpected(checked.error());
  return state;
}

Change encode_key(const State& state, const std::string& key) {
  std::string_view rest = key;
  Change change{key, std::nullopt};
  if (key == kMetaKey) {
    change.value = serialize(state.meta);
  } else if (take_prefix(rest, kDevicePrefix)) {
    change.value = value_in(state.devices, std::string(rest));
  } else if (take_prefix(rest, kRequestPrefix)) {
    change.value = value_in(state.requests, std::string(rest));
  } else if (take_prefix(rest, kHostPrefix)) {
    change.value = value_in(state.hosts, std::string(rest));
  } else if (take_prefix(rest, kEventPrefix)) {
    change.value = value_in(state.events, std::stoull(std::string(rest)));
  } else if (take_prefix(rest, kMemberPrefix)) {
    change.value = value_in(state.members, std::string(rest));
  } else if (take_prefix(rest, kTokenPrefix)) {
    change.value = value_in(state.tokens, std::string(rest));
  }
  return change;
}

std::vector<Change> encode(const State& state) {
  std::vector<Change> out;
  for (const auto& [name, device] : state.devices) out.push_back(encode_key(state, device_key(name)));
  for (const auto& [seq, event] : state.events) out.push_back(encode_key(state, event_key(seq)));
  for (const auto& [id, host] : state.hosts) out.push_back(encode_key(state, host_key(id)));
  for (const auto& [id, member] : state.members) out.push_back(encode_key(state, member_key(id)));
  out.push_back(encode_key(state, kMetaKey));
  for (const auto& [id, request] : state.requests) out.push_back(encode_key(state, request_key(id)));
  for (const auto& [id, token] : state.tokens) out.push_back(encode_key(state, token_key(id)));
  return out;
}

}  // namespace usblease::lease
