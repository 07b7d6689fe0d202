#include "cli/complete.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "cli/connection.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kTimeoutS = 1;

// What was typed so far. Unlike read_arguments() this forgives: the line is not finished.
struct Typed {
  std::vector<std::string> words;
  std::vector<OptionId> options;
  Globals globals;
  bool value_next = false;     // the last word is an option that wants a value
  bool options_ended = false;  // "--"
};

void take_option(Typed* typed, const std::string& text, const std::vector<std::string>& before, std::size_t* at) {
  const auto* spec = find_option(text);
  if (spec == nullptr) return;
  typed->options.push_back(spec->id);
  if (spec->value == nullptr) return;
  std::string value;
  if (const auto equals = text.find('='); equals != std::string::npos) {
    value = text.substr(equals + 1);
  } else if (*at + 1 < before.size()) {
    value = before[++*at];
  } else {
    typed->value_next = true;
  }
  if (spec->id == OptionId::kConnect && !value.empty()) typed->globals.socket_path = value;
}

Typed read_typed(const std::vector<std::string>& before, const Globals& defaults) {
  Typed typed;
  typed.globals = defaults;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const auto& text = before[i];
    if (typed.options_ended || text.size() < 2 || text[0] != '-') {
      typed.words.push_back(text);
    } else if (text == "--") {
      typed.options_ended = true;
    } else {
      take_option(&typed, text, before, &i);
    }
  }
  return typed;
}

std::optional<api::ServerFrame> ask_daemon(const Globals& globals, const api::ClientFrame& request,
                                           api::ServerFrame::BodyCase expected) {
  Globals hurried = globals;
  hurried.timeout_s = kTimeoutS;
  Interrupt interrupt;
  Context context{hurried, interrupt};
  auto reply = ask(context, request, expected);
  if (!reply) return std::nullopt;
  return std::move(*reply);
}

std::vector<std::string> device_names(const Globals& globals) {
  std::vector<std::string> out;
  api::ClientFrame request;
  request.mutable_list_devices();
  const auto reply = ask_daemon(globals, request, api::ServerFrame::kListDevices);
  if (!reply) return out;
  for (const auto& view : reply->list_devices().devices()) out.push_back(view.device().name());
  return out;
}

std::vector<std::string> guest_names(const Globals& globals) {
  std::vector<std::string> out;
  api::ClientFrame request;
  request.mutable_list_guests();
  const auto reply = ask_daemon(globals, request, api::ServerFrame::kListGuests);
  if (!reply) return out;
  for (const auto& name : reply->list_guests().names()) out.push_back(name);
  return out;
}

std::vector<std::string> host_names(const Globals& globals) {
  std::vector<std::string> out;
  api::ClientFrame request;
  request.mutable_cluster_status();
  const auto reply = ask_daemon(globals, request, api::ServerFrame::kClusterStatus);
  if (!reply) return out;
  for (const auto& status : reply->cluster_status().hosts()) out.push_back(status.host().id());
  return out;
}

// The next words of verbs that begin with the words in typed.words.
std::vector<std::string> verb_words(const std::vector<std::string>& typed_words) {
  std::vector<std::string> out;
  std::string prefix;
  for (const auto& word : typed_words) prefix += word + " ";
  for (const auto& verb : all_verbs()) {
    const std::string_view name = verb.name;
    if (!name.starts_with(prefix)) continue;
    const std::string_view rest = name.substr(prefix.size());
    out.emplace_back(rest.substr(0, rest.find(' ')));
  }
  return out;
}

std::vector<std::string> option_names(const Verb* verb, const Typed& typed) {
  std::vector<std::string> out;
  for (const auto& spec : all_options()) {
    const bool known = spec.global || (verb != nullptr && std::find(verb->options.begin(), verb->options.end(),
                                                                    spec.id) != verb->options.end());
    const bool used = std::find(typed.options.begin(), typed.options.end(), spec.id) != typed.options.end();
    if (known && !used) out.push_back(std::string("--") + spec.long_name);
  }
  return out;
}

std::vector<std::string> argument_values(const Verb& verb, std::size_t used, const Typed& typed) {
  const std::size_t at = typed.words.size() - used;
  if (verb.arguments.empty() || (at >= verb.arguments.size() && !verb.last_repeats)) return {};
  switch (verb.arguments[std::min(at, verb.arguments.size() - 1)]) {
    case ArgumentKind::kGuest:
      return guest_names(typed.globals);
    case ArgumentKind::kDevice: {
      auto names = device_names(typed.globals);
      std::erase_if(names, [&](const std::string& name) {
        return std::find(typed.words.begin(), typed.words.end(), name) != typed.words.end();
      });
      return names;
    }
    case ArgumentKind::kHost:
      return host_names(typed.globals);
    case ArgumentKind::kFile:
    case ArgumentKind::kToken:
    case ArgumentKind::kLock:
    case ArgumentKind::kCommand:
      return {};
    case ArgumentKind::kVerb:
      return verb_words({typed.words.begin() + static_cast<std::ptrdiff_t>(used), typed.words.end()});
  }
  return {};
}

// A name that would change a terminal or break a line is not offered; it can still be typed (as \xNN it is no name).
bool is_offered(const std::string& candidate, const std::string& word) {
  return candidate.starts_with(word) && !candidate.empty() && escape_text(candidate) == candidate;
}

}  // namespace

std::vector<std::string> complete(const std::vector<std::string>& before, const std::string& word,
                                  const Globals& defaults) {
  const Typed typed = read_typed(before, defaults);
  if (typed.value_next) return {};
  std::size_t used = 0;
  const Verb* verb = find_verb(typed.words, &used);
  std::vector<std::string> out;
  if (!typed.options_ended && word.starts_with('-')) {
    out = option_names(verb, typed);
  } else if (verb == nullptr) {
    out = verb_words(typed.words);
  } else {
    out = argument_values(*verb, used, typed);
  }
  std::erase_if(out, [&](const std::string& candidate) { return !is_offered(candidate, word); });
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace usblease::cli
