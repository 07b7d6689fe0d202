// The file STATE_DIR/cluster/members: the hosts of the cluster as this one last knew them, so that a cold start finds
// its peers. The record of membership is in the store; this is a copy.
//
//   [cluster]
//   id=CLUSTER_ID
//   [host HOST_ID]
//   addresses=HOST:PORT;HOST:PORT
//   candidate=true
//   store_url=https://HOST:PORT
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/error.h"

namespace usblease::cluster {

inline constexpr std::size_t kMembersMax = 1024;
inline constexpr std::size_t kCandidatesMax = 5;
inline constexpr std::size_t kAddressesMax = 8;  // of one host

struct Member {
  std::string host_id;
  std::vector<std::string> addresses;  // "HOST:PORT", tried in this order
  bool candidate = false;              // has a store member, so it may become the coordinator
  std::string store_url;               // of its store member for clients; empty: none

  bool operator==(const Member&) const = default;
};

struct Members {
  std::string cluster_id;
  std::vector<Member> hosts;

  [[nodiscard]] const Member* find(const std::string& host_id) const;
  [[nodiscard]] std::vector<std::string> candidates() const;  // their host ids
  bool operator==(const Members&) const = default;
};

// nullopt: there is no such file, so this host is a cluster of one. kBadInput: what is wrong with it, and where.
Result<std::optional<Members>> load_members(const std::string& path);
// For load_members and its tests; `path` stands in messages only.
Result<Members> parse_members(const std::string& text, const std::string& path);

// What parse_members reads.
std::string format_members(const Members& members);
// Replaces the file at once and durably.
Result<void> save_members(const std::string& path, const Members& members);

}  // namespace usblease::cluster
