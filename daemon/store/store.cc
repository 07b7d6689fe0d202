#include "daemon/store/store.h"

#include <set>

#include "common/text.h"

namespace usblease::store {
namespace {

std::optional<std::string> bad_key(const std::string& key) {
  if (key.empty()) return "an empty key";
  if (key.size() > kKeyMax) {
    return "a key of " + std::to_string(key.size()) + " bytes (at most " + std::to_string(kKeyMax) + ")";
  }
  if (key.find('\0') != std::string::npos) return "a NUL in key \"" + escape_text(key) + "\"";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> out_of_bounds(const Txn& txn) {
  const std::size_t operations = txn.guards.size() + txn.writes.size();
  if (operations > kTxnOpsMax) {
    return std::to_string(operations) + " guards and writes (at most " + std::to_string(kTxnOpsMax) + ")";
  }
  for (const Guard& guard : txn.guards) {
    if (auto bad = bad_key(guard.key)) return bad;
  }
  std::set<std::string_view> written;
  for (const Write& write : txn.writes) {
    if (auto bad = bad_key(write.key)) return bad;
    if (!written.insert(write.key).second) return "key \"" + escape_text(write.key) + "\" written twice";
    if (write.value && write.value->size() > kValueMax) {
      return "a value of " + std::to_string(write.value->size()) + " bytes for key \"" + escape_text(write.key) +
             "\" (at most " + std::to_string(kValueMax) + ")";
    }
  }
  return std::nullopt;
}

std::optional<std::string> prefix_end(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 0xff) end.pop_back();
  if (end.empty()) return std::nullopt;
  end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  return end;
}

}  // namespace usblease::store
