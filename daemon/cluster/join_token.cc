#include "daemon/cluster/join_token.h"

#include <gnutls/crypto.h>

#include <algorithm>
#include <array>

#include "common/glib_ptr.h"
#include "common/text.h"
#include "join_token.pb.h"

namespace usblease::cluster {
namespace {

constexpr std::string_view kPrefix = "usblease-join-";
constexpr std::string_view kVersion = "1.";
constexpr std::size_t kChecksumBytes = 4;
constexpr std::size_t kFingerprintBytes = 32;
constexpr std::size_t kAddressMax = 300;  // a DNS name of 253, brackets, a port
constexpr std::string_view kHex = "0123456789abcdef";
constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::string to_hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += kHex[byte >> 4U];
    text += kHex[byte & 0xFU];
  }
  return text;
}

// Empty: not exactly `bytes` bytes as lower-case hex digits.
std::string from_hex(std::string_view text, std::size_t bytes) {
  if (text.size() != 2 * bytes) return {};
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const std::size_t high = kHex.find(text[i]);
    const std::size_t low = kHex.find(text[i + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos) return {};
    out += static_cast<char>(high << 4U | low);
  }
  return out;
}

std::string sha256(std::string_view bytes) {
  std::string digest(kFingerprintBytes, '\0');
  gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes.data(), bytes.size(), digest.data());
  return digest;
}

// With '-' and '_' and without '=', so that a double click marks the whole and no shell or URL minds it.
std::string to_base64(std::string_view bytes) {
  const GChars text(g_base64_encode(reinterpret_cast<const guchar*>(bytes.data()), bytes.size()));
  std::string out(text.get());
  std::replace(out.begin(), out.end(), '+', '-');
  std::replace(out.begin(), out.end(), '/', '_');
  out.erase(out.find_last_not_of('=') + 1);
  return out;
}

// Of characters of the alphabet only.
std::string from_base64(std::string text) {
  std::replace(text.begin(), text.end(), '-', '+');
  std::replace(text.begin(), text.end(), '_', '/');
  text.append((4 - text.size() % 4) % 4, '=');
  gsize size = 0;
  const GPtr<guchar, g_free> bytes(g_base64_decode(text.c_str(), &size));
  return {reinterpret_cast<const char*>(bytes.get()), size};
}

tl::unexpected<Error> bad(const std::string& why) { return fail(ErrorCode::kBadInput, "the join token " + why); }

bool is_printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < '\x7f'; });
}

Result<void> check_fields(const JoinToken& token) {
  if (!is_identifier(token.cluster_id)) return bad("names no cluster");
  if (!is_identifier(token.host_id)) return bad("names no host");
  if (from_hex(token.secret, kJoinSecretBytes).empty()) return bad("has no secret of the right length");
  if (from_hex(token.authority_fingerprint, kFingerprintBytes).empty()) return bad("has no fingerprint of a CA");
  if (token.expires_unix_s == 0) return bad("has no end");
  if (token.addresses.empty() || token.addresses.size() > kJoinTokenAddressesMax)
    return bad("has " + std::to_string(token.addresses.size()) + " addresses; 1 to " +
               std::to_string(kJoinTokenAddressesMax) + " are allowed");
  for (const std::string& address : token.addresses) {
    if (address.empty() || address.size() > kAddressMax || !is_printable(address))
      return bad("has an impossible address, \"" + escape_text(address.substr(0, 64)) + "\"");
  }
  return {};
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
}

// The checked bytes inside the text.
Result<std::string> unwrap(std::string_view text) {
  text = trim(text);
  if (text.substr(0, kPrefix.size()) != kPrefix)
    return fail(ErrorCode::kBadInput, "this is no join token: it does not begin with " + std::string(kPrefix) +
                                          "; take the whole line that usblease cluster add has printed");
  if (text.size() > kJoinTokenTextMax)
    return bad("is longer than " + std::to_string(kJoinTokenTextMax) + " characters");
  text.remove_prefix(kPrefix.size());
  if (text.substr(0, kVersion.size()) != kVersion)
    return bad("is of a version that this usblease does not know; install the same version as the cluster has");
  text.remove_prefix(kVersion.size());
  if (text.find_first_not_of(kAlphabet) != std::string_view::npos)
    return bad("has characters that do not belong there; copy the whole line again");
  const std::string bytes = from_base64(std::string(text));
  const std::string_view view(bytes);
  if (bytes.size() <= kChecksumBytes ||
      sha256(view.substr(kChecksumBytes)).compare(0, kChecksumBytes, view.substr(0, kChecksumBytes)) != 0 ||
      to_base64(bytes) != text)
    return bad("is damaged (its checksum is wrong); copy the whole line again");
  return bytes.substr(kChecksumBytes);
}

}  // namespace

std::string wrap_join_token_bytes(std::string_view bytes) {
  return std::string(kPrefix) + std::string(kVersion) +
         to_base64(sha256(bytes).substr(0, kChecksumBytes) + std::string(bytes));
}

std::string new_join_secret() { return random_hex(kJoinSecretBytes); }

Result<std::string> encode_join_token(const JoinToken& token) {
  if (const auto checked = check_fields(token); !checked) return tl::unexpected(checked.error());
  join::JoinToken message;
  message.set_cluster_id(token.cluster_id);
  message.set_host_id(token.host_id);
  message.set_secret(from_hex(token.secret, kJoinSecretBytes));
  for (const std::string& address : token.addresses) message.add_addresses(address);
  message.set_authority_fingerprint(from_hex(token.authority_fingerprint, kFingerprintBytes));
  message.set_expires_unix_s(token.expires_unix_s);
  const std::string bytes = message.SerializeAsString();
  std::string text = wrap_join_token_bytes(bytes);
  if (text.size() > kJoinTokenTextMax)
    return bad("would be longer than " + std::to_string(kJoinTokenTextMax) + " characters; give it fewer addresses");
  return text;
}

Result<JoinToken> decode_join_token(std::string_view text) {
  const auto bytes = unwrap(text);
  if (!bytes) return tl::unexpected(bytes.error());
  join::JoinToken message;
  if (!message.ParseFromString(*bytes)) return bad("cannot be read; copy the whole line again");
  JoinToken token{message.cluster_id(),
                  message.host_id(),
                  to_hex(message.secret()),
                  {message.addresses().begin(), message.addresses().end()},
                  to_hex(message.authority_fingerprint()),
                  message.expires_unix_s()};
  if (const auto checked = check_fields(token); !checked) return tl::unexpected(checked.error());
  return token;
}

Result<void> check_join_token(const JoinToken& token, const std::string& host_id, std::uint64_t now_unix_s) {
  if (token.host_id != host_id)
    return fail(ErrorCode::kRefused, "the join token is for host " + token.host_id + ", and this is host " + host_id +
                                         "; run usblease cluster add " + host_id + " on a host of the cluster");
  if (now_unix_s > token.expires_unix_s)
    return fail(ErrorCode::kTimedOut, "the join token expired at " + format_unix_time(token.expires_unix_s) +
                                          "; run usblease cluster add " + host_id + " again");
  return {};
}

std::string hash_join_secret(std::string_view secret) {
  return to_hex(sha256("usblease-join-secret:" + std::string(secret)));
}

Result<void> check_invitation(const Invitation& invitation, const std::string& host_id, std::string_view secret,
                              std::uint64_t now_unix_s) {
  const std::string hash = hash_join_secret(secret);
  const bool same = hash.size() == invitation.secret_hash.size() &&
                    gnutls_memcmp(hash.data(), invitation.secret_hash.data(), hash.size()) == 0;
  if (!same || host_id != invitation.host_id)
    return fail(ErrorCode::kDenied, "this cluster has not given out that join token for host " +
                                        escape_text(std::string_view(host_id).substr(0, 64)) +
                                        "; run usblease cluster add on one of its hosts");
  if (invitation.used)
    return fail(ErrorCode::kRefused,
                "the join token was used already, and each is good for one join; run usblease cluster"
                " add " +
                    host_id + " again");
  if (now_unix_s > invitation.expires_unix_s)
    return fail(ErrorCode::kTimedOut, "the join token expired at " + format_unix_time(invitation.expires_unix_s) +
                                          "; run usblease cluster add " + host_id + " again");
  return {};
}

}  // namespace usblease::cluster
