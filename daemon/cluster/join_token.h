// The text that an operator carries from `usblease cluster add HOST` to `usblease cluster join TOKEN` on that host. One
// line of letters, digits, '-', '_' and '.'; holds a secret that is good for one join.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::cluster {

inline constexpr std::size_t kJoinTokenTextMax = 4096;
inline constexpr std::size_t kJoinTokenAddressesMax = 16;
inline constexpr std::size_t kJoinSecretBytes = 16;

struct JoinToken {
  std::string cluster_id;
  std::string host_id;                 // the only host that may join with it
  std::string secret;                  // 32 hex digits
  std::vector<std::string> addresses;  // "HOST:PORT" of members, to ask one after the other
  std::string authority_fingerprint;   // SHA-256 of the cluster's CA, 64 hex digits
  std::uint64_t expires_unix_s = 0;
  bool operator==(const JoinToken&) const = default;
};

// kJoinSecretBytes from getrandom, as hex digits.
std::string new_join_secret();

// kBadInput: a field that no token may have.
Result<std::string> encode_join_token(const JoinToken& token);

// Blanks around the text are allowed, nothing else is. kBadInput says whether it is no token at all, of a newer
// version, cut or mistyped (checksum), or has an impossible field. Does not look at the clock.
Result<JoinToken> decode_join_token(std::string_view text);

// Any bytes as the text of a token with the right checksum; for tests of what decode_join_token refuses further in.
std::string wrap_join_token_bytes(std::string_view bytes);

// What the joining host checks before it asks anybody: the token is for this host, and not expired by its own clock.
Result<void> check_join_token(const JoinToken& token, const std::string& host_id, std::uint64_t now_unix_s);

// What the cluster keeps of a secret: SHA-256, 64 hex digits. The secret cannot be found from it.
std::string hash_join_secret(std::string_view secret);

// What the cluster keeps of a token that it has given out.
struct Invitation {
  std::string host_id;
  std::string secret_hash;
  std::uint64_t expires_unix_s = 0;
  bool used = false;
};
// What the coordinator checks when somebody joins; takes the same time for every wrong secret. kDenied: unknown secret
// or another host's; kRefused: used; kTimedOut: expired. Messages tell the caller what to do.
Result<void> check_invitation(const Invitation& invitation, const std::string& host_id, std::string_view secret,
                              std::uint64_t now_unix_s);

}  // namespace usblease::cluster
