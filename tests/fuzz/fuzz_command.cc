// Bytes from anywhere against the lease core: as records of a store, and as commands one after another. Input: chunks,
// each behind its length (2 bytes, little-endian); the first byte of a chunk says what it is.
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"

using namespace usblease;
using namespace usblease::lease;

namespace {

std::string_view take(std::string_view& bytes, std::size_t count) {
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(taken.size());
  return taken;
}

std::string_view take_chunk(std::string_view& bytes) {
  if (bytes.size() < 2) return take(bytes, bytes.size());
  const auto low = static_cast<unsigned char>(bytes[0]);
  const auto high = static_cast<unsigned char>(bytes[1]);
  bytes.remove_prefix(2);
  return take(bytes, static_cast<std::size_t>(low) + 256U * high);
}

std::vector<std::pair<std::string, std::string>> entries_of(const State& state) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const Change& change : encode(state)) out.emplace_back(change.key, *change.value);
  return out;
}

void must(bool holds) {
  if (!holds) std::abort();
}

void apply(Core& core, std::string_view bytes, std::uint64_t now_unix_s) {
  command::Command command;
  if (!command.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  const Decision decision = core.apply(command, Context{now_unix_s});
  const auto code = decision.reply.status().code();
  must(code == command::CODE_OK || code == command::CODE_QUEUED || decision.changes.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  std::vector<std::pair<std::string, std::string>> entries;
  std::vector<std::string_view> commands;
  while (!bytes.empty()) {
    std::string_view chunk = take_chunk(bytes);
    const std::string_view kind = take(chunk, 1);
    if (!kind.empty() && kind[0] == 'r') {  // a record: key, NUL, value
      const std::string key(take(chunk, std::min(chunk.find('\0'), chunk.size())));
      take(chunk, 1);
      entries.emplace_back(key, std::string(chunk));
    } else {
      commands.push_back(chunk);
    }
  }
  auto state = load(entries);
  if (!state) state = make_state("fuzz");
  Core core(std::move(*state));
  std::uint64_t now_unix_s = 1'000;
  for (const std::string_view command : commands) apply(core, command, now_unix_s++);
  // Whatever the commands were, the next coordinator can read what they left.
  if (core.state().meta.format() == 0) return 0;
  const auto left = entries_of(core.state());
  const auto again = load(left);
  must(again.has_value() && entries_of(*again) == left);
  return 0;
}
