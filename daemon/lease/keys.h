// Names of the records in the store, and the bounds of what they hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/text.h"

namespace usblease::lease {

// Format of all records, the greatest that this version understands. A store with a greater one is refused
// (record::Meta.format says which one it has).
inline constexpr std::uint32_t kRecordFormat = 1;
// Of the messages between hosts, likewise.
inline constexpr std::uint32_t kPeerVersion = 1;

inline constexpr const char* kMetaKey = "meta";                // record::Meta
inline constexpr const char* kCoordinatorKey = "coordinator";  // record::Coordinator, owned by the coordinator
inline constexpr const char* kTermKey = "term";                // record::Term
inline constexpr const char* kDevicePrefix = "device/";        // + name: record::Device
inline constexpr const char* kRequestPrefix = "request/";      // + id: record::Request
inline constexpr const char* kHostPrefix = "host/";            // + id: record::Host
inline constexpr const char* kEventPrefix = "event/";          // + 20 digits of seq: record::Event
inline constexpr const char* kMemberPrefix = "member/";        // + host id: record::Member
inline constexpr const char* kAuthorityKey = "ca";             // join::Authority: the cluster's CA and its key
inline constexpr const char* kRevocationsKey = "crl";          // PEM: certificates of the CA that nobody should believe
inline constexpr const char* kTokenPrefix = "token/";          // + id: record::JoinToken

// A lock has the record of a device. Its home is the host of its holder, so it is never absent and has no homes on
// record.
inline bool is_lock(std::string_view name) { return name.substr(0, kLockPrefix.size()) == kLockPrefix; }

std::string device_key(const std::string& name);
std::string request_key(const std::string& id);
std::string host_key(const std::string& id);
std::string event_key(std::uint64_t seq);
std::string member_key(const std::string& host_id);
std::string token_key(const std::string& id);

inline constexpr std::size_t kDevicesMax = 128 * 1024;
inline constexpr std::size_t kDevicesPerMessageMax = 4096;  // of a host, in a registration or a renewal
inline constexpr std::size_t kLocksMax = 1024;  // of the devices; their records stay for ever, for the order of tokens
inline constexpr std::size_t kRequestsMax = 4096;
inline constexpr std::size_t kHostsMax = 1024;
inline constexpr std::size_t kMembersMax = 1024;  // those that were removed too
inline constexpr std::size_t kJoinTokensMax = 64;
inline constexpr std::size_t kStoreMembersMax = 5;  // more cost every write, and five survive the loss of two
inline constexpr std::size_t kAddressesMax = 8;
inline constexpr std::size_t kRevokedMax = 32;  // certificates of one host
inline constexpr std::uint64_t kJoinTokenMaxS = 30ULL * 86'400;
inline constexpr std::size_t kEventsMax = 4096;  // older ones are dropped
inline constexpr std::size_t kHomesPerDeviceMax = 16;
inline constexpr std::size_t kDevicesPerRequestMax = 16;
inline constexpr std::size_t kPolicyGuestsMax = 256;
inline constexpr std::size_t kBarredBootIdsMax = 64;
inline constexpr std::size_t kNameBytesMax = 255;  // guest names, principals, addresses, serials …
inline constexpr std::size_t kReasonBytesMax = 512;
inline constexpr std::size_t kPolicyBytesMax = 32 * 1024;  // a record::Device must stay below 64 KiB
inline constexpr std::uint32_t kIsolationMaxMs = 3'600'000U;
inline constexpr std::size_t kEventTextBytesMax = 1024;
inline constexpr std::int32_t kPriorityMax = 100;
inline constexpr std::uint32_t kWaitMaxMs = 30 * 86'400'000U;
inline constexpr std::uint32_t kGraceMaxMs = 30 * 86'400'000U;
inline constexpr std::uint64_t kDurationMaxS = 10ULL * 365 * 86'400;

// A token is epoch × 2^30 + a counter: an epoch may be a unix time in seconds (until the year 2514), and 2^30 grants
// of one device fit into one. A counter that runs over carries into the epoch, which keeps the order.
inline constexpr unsigned kTokenCounterBits = 30;
// One epoch short of 64 bits: above every token that a home may show there is room for tokens that do not wrap around.
inline constexpr std::uint64_t kEpochMax = (1ULL << (64 - kTokenCounterBits)) - 2;
inline constexpr std::uint64_t kTokenMax = ((kEpochMax + 1) << kTokenCounterBits) - 1;

}  // namespace usblease::lease
