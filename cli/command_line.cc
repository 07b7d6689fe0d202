#include "cli/command_line.h"

#include <glib.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "cli/table.h"
#include "common/assignments.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

tl::unexpected<Error> bad(std::string message) { return fail(ErrorCode::kBadInput, std::move(message)); }

const std::string* given(const RawArguments& raw, OptionId id) {
  const auto found = raw.options.find(id);
  return found != raw.options.end() ? &found->second : nullptr;
}

bool contains(const std::vector<OptionId>& ids, OptionId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

bool contains_kind(const Verb& verb, ArgumentKind kind) {
  return std::find(verb.arguments.begin(), verb.arguments.end(), kind) != verb.arguments.end();
}

std::string dashed(OptionId id) { return std::string("--") + option_spec(id).long_name; }

// The value of one duration option, if it is given, within least..most.
Result<std::optional<std::uint64_t>> duration(const RawArguments& raw, OptionId id, std::uint64_t least_s,
                                              std::uint64_t most_s) {
  const auto* text = given(raw, id);
  if (text == nullptr) return std::nullopt;
  const auto seconds = parse_duration_s(*text);
  if (!seconds) return bad(dashed(id) + ": " + seconds.error().message);
  if (*seconds < least_s || *seconds > most_s) {
    return bad(dashed(id) + ": " + escape_text(*text) + " is out of bounds; allowed is " + format_duration(least_s) +
               " to " + format_duration(most_s));
  }
  return *seconds;
}

Result<std::optional<std::int64_t>> integer(const RawArguments& raw, OptionId id, std::int64_t least,
                                            std::int64_t most) {
  const auto* text = given(raw, id);
  if (text == nullptr) return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || value < least || value > most) {
    return bad(dashed(id) + ": \"" + escape_text(text->substr(0, 64)) + "\" is not a whole number from " +
               std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

Result<void> check_text(const std::string& what, const std::string& text, std::size_t bytes_max) {
  if (text.empty()) return bad(what + " is empty; give at least one character");
  if (text.size() > bytes_max) {
    return bad(what + " has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(bytes_max) +
               " are allowed");
  }
  if (g_utf8_validate(text.data(), static_cast<gssize>(text.size()), nullptr) == FALSE) {
    return bad(what + " is not valid UTF-8: " + escape_text(text));
  }
  return {};
}

Result<void> check_allowed_options(const RawArguments& raw, const Verb& verb) {
  for (const auto& [id, value] : raw.options) {
    if (!option_spec(id).global && !contains(verb.options, id)) {
      return bad(dashed(id) + " is not an option of `" + verb.name + "`; usage: " + synopsis(verb));
    }
  }
  for (const OptionId id : verb.required) {
    if (given(raw, id) == nullptr)
      return bad("`" + std::string(verb.name) + "` needs " + dashed(id) + "; usage: " + synopsis(verb));
  }
  return {};
}

Result<void> add_device(Invocation* out, const std::string& name) {
  if (!is_device_name(name) && !is_lock_name(name)) {
    return bad("\"" + escape_text(name.substr(0, 64)) +
               "\" cannot be a device's name, which is 1 to 48 of a-z, 0-9, _ and -; `usblease list` shows the names");
  }
  if (std::find(out->devices.begin(), out->devices.end(), name) != out->devices.end()) {
    return bad("the device " + name + " is named twice; name it once");
  }
  if (out->devices.size() == kDevicesMax) {
    return bad("more than " + std::to_string(kDevicesMax) + " devices; ask for them in several commands");
  }
  out->devices.push_back(name);
  return {};
}

// What follows has options of its own, which must not be taken for ours.
Result<void> check_dashes(const RawArguments& raw, const Verb& verb, std::size_t words_before) {
  if (!contains_kind(verb, ArgumentKind::kCommand) || raw.before_dashes == words_before) return {};
  return bad("the command stands after --; usage: " + synopsis(verb));
}

Result<void> check_arguments(Invocation* out) {
  const Verb& verb = *out->verb;
  const std::size_t count = out->words.size();
  const std::size_t expected = verb.arguments.size();
  if (count == 0 && verb.arguments_optional) return {};
  if (count < expected || (count > expected && !verb.last_repeats)) {
    const std::string problem = count < expected ? "an argument is missing" : "there is an argument too many";
    return bad(problem + "; usage: " + synopsis(verb));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const ArgumentKind kind = verb.arguments[std::min(i, expected - 1)];
    Result<void> checked;
    if (kind == ArgumentKind::kDevice) checked = add_device(out, out->words[i]);
    if (kind == ArgumentKind::kGuest) {
      checked = check_text("the guest's name", out->words[i], kGuestNameMax);
      out->guest = out->words[i];
    }
    if (kind == ArgumentKind::kHost) {
      out->host = out->words[i];
      if (!is_identifier(out->host))
        checked =
            bad("\"" + escape_text(out->host.substr(0, 64)) +
                "\" cannot be a host's id, which is 1 to 64 of A-Z a-z 0-9 . _ -; `usblease cluster status` shows "
                "them");
    }
    if (kind == ArgumentKind::kLock && !is_device_name(out->words[i]))
      checked = bad("\"" + escape_text(out->words[i].substr(0, 64)) +
                    "\" cannot be a lock's name, which is 1 to 48 of a-z, 0-9, _ and -");
    if (kind == ArgumentKind::kFile || kind == ArgumentKind::kToken)
      checked = check_text(kind == ArgumentKind::kFile ? "the file's name" : "the token", out->words[i], kWordMax);
    if (!checked) return checked;
  }
  return {};
}

Result<void> check_addresses(Invocation* out, const std::string& list) {
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    out->addresses.push_back(list.substr(begin, end - begin));
    const std::string& address = out->addresses.back();
    if (address.empty() || address.size() > 255 || address.find(':') == std::string::npos)
      return bad("--address: \"" + escape_text(address.substr(0, 64)) +
                 "\" is not HOST:PORT, for example 192.0.2.1:7471");
    begin = end + 1;
  }
  if (out->addresses.size() > kAddressesMax) return bad("--address: at most " + std::to_string(kAddressesMax));
  return {};
}

Result<void> check_option_values(Invocation* out, const RawArguments& raw) {
  const bool assign = out->verb->run == verb_assign;
  const auto wait_s = duration(raw, OptionId::kWait, 0, assign ? kAssignmentWaitMaxS : kWaitMaxS);
  if (!wait_s) return tl::unexpected(wait_s.error());
  const auto for_s = duration(raw, OptionId::kFor, 0, UINT64_MAX);
  if (!for_s) return tl::unexpected(for_s.error());
  const auto grace_s = duration(raw, OptionId::kGrace, 0, kGraceMaxS);
  if (!grace_s) return tl::unexpected(grace_s.error());
  const auto valid_s = duration(raw, OptionId::kValid, 1, kJoinTokenMaxS);
  if (!valid_s) return tl::unexpected(valid_s.error());
  if (const auto* list = given(raw, OptionId::kAddress); list != nullptr) {
    if (auto checked = check_addresses(out, *list); !checked) return checked;
  }
  const auto priority = integer(raw, OptionId::kPriority, -kPriorityMax, kPriorityMax);
  if (!priority) return tl::unexpected(priority.error());
  const auto limit = integer(raw, OptionId::kLimit, 0, INT32_MAX);
  if (!limit) return tl::unexpected(limit.error());
  if (const auto* reason = given(raw, OptionId::kReason); reason != nullptr) {
    if (auto checked = check_text("--reason", *reason, kReasonMax); !checked) return checked;
    out->reason = *reason;
  }
  out->wait_s = *wait_s;
  out->for_s = *for_s;
  out->grace_s = *grace_s;
  out->valid_s = *valid_s;
  if (priority->has_value()) out->priority = static_cast<std::int32_t>(**priority);
  if (limit->has_value()) out->limit = static_cast<std::uint32_t>(**limit);
  out->optional = given(raw, OptionId::kOptional) != nullptr;
  out->follow = given(raw, OptionId::kFollow) != nullptr;
  out->tree = given(raw, OptionId::kTree) != nullptr;
  out->undo = given(raw, OptionId::kUndo) != nullptr;
  out->status = given(raw, OptionId::kStatus) != nullptr;
  if (out->undo && out->status) return bad("--undo and --status exclude each other");
  return {};
}

// "host inf": say what follows "host", instead of that the whole is unknown.
tl::unexpected<Error> unknown_verb(const std::vector<std::string>& words) {
  std::string known;
  for (const auto& verb : all_verbs()) {
    if (std::string_view(verb.name).starts_with(words[0] + " "))
      known += (known.empty() ? "`" : ", `") + std::string(verb.name) + "`";
  }
  if (!known.empty()) return bad("`" + words[0] + "` is the beginning of: " + known);
  return bad("there is no verb `" + escape_text(words[0].substr(0, 64)) + "`; `usblease help` lists them");
}

}  // namespace

Result<Globals> read_globals(const RawArguments& raw, const Globals& defaults) {
  Globals out = defaults;
  if (const auto* path = given(raw, OptionId::kConnect); path != nullptr) out.socket_path = *path;
  if (out.socket_path.empty() || out.socket_path.size() >= sizeof(sockaddr_un::sun_path)) {
    return bad("--connect: the socket's path has " + std::to_string(out.socket_path.size()) + " bytes; 1 to " +
               std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " are allowed");
  }
  const auto timeout_s = duration(raw, OptionId::kTimeout, 1, kTimeoutMaxS);
  if (!timeout_s) return tl::unexpected(timeout_s.error());
  out.timeout_s = timeout_s->value_or(defaults.timeout_s);
  out.quiet = defaults.quiet || given(raw, OptionId::kQuiet) != nullptr;
  out.json = defaults.json || given(raw, OptionId::kJson) != nullptr;
  return out;
}

Result<Invocation> check_command(const RawArguments& raw, const Globals& defaults) {
  Invocation out;
  auto globals = read_globals(raw, defaults);
  if (!globals) return tl::unexpected(globals.error());
  out.globals = std::move(*globals);
  out.version = given(raw, OptionId::kVersion) != nullptr;
  out.help = given(raw, OptionId::kHelp) != nullptr;
  std::size_t used = 0;
  if (!raw.words.empty()) {
    out.verb = find_verb(raw.words, &used);
    if (out.verb == nullptr) return unknown_verb(raw.words);
  }
  if (out.version || out.help) return out;
  if (out.verb == nullptr) return bad("no verb is given; `usblease help` lists them");
  out.words.assign(raw.words.begin() + static_cast<std::ptrdiff_t>(used), raw.words.end());
  if (const auto checked = check_allowed_options(raw, *out.verb); !checked) return tl::unexpected(checked.error());
  if (const auto checked = check_dashes(raw, *out.verb, used + 1); !checked) return tl::unexpected(checked.error());
  if (const auto checked = check_arguments(&out); !checked) return tl::unexpected(checked.error());
  if (const auto checked = check_option_values(&out, raw); !checked) return tl::unexpected(checked.error());
  return out;
}

}  // namespace usblease::cli
