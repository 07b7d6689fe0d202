#include "cli/options.h"

#include <glib.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "cli/table.h"
#include "common/glib_ptr.h"

namespace usblease::cli {
namespace {

constexpr std::array kOptions = {
    OptionSpec{OptionId::kConnect, "connect", 'c', "SOCKET", "talk to the daemon at this Unix socket", true},
    OptionSpec{OptionId::kQuiet, "quiet", 'q', nullptr, "no table headers, no progress, no word about success", true},
    OptionSpec{OptionId::kJson, "json", 0, nullptr, "print the daemon's reply as JSON", true},
    OptionSpec{OptionId::kTimeout, "timeout", 't', "DURATION", "give up when no answer comes for so long (30s)", true},
    OptionSpec{OptionId::kHelp, "help", 'h', nullptr, "print help and end", true},
    OptionSpec{OptionId::kVersion, "version", 'V', nullptr, "print the version and end", true},
    OptionSpec{OptionId::kWait, "wait", 0, "DURATION", "wait for so long when the device is not free", false},
    OptionSpec{OptionId::kFor, "for", 0, "DURATION", "the lease ends after so long (0: no end)", false},
    OptionSpec{OptionId::kPriority, "priority", 0, "N", "-100 to 100; greater goes first in the queue (0)", false},
    OptionSpec{OptionId::kOptional, "optional", 0, nullptr, "the guest may start without the device", false},
    OptionSpec{OptionId::kGrace, "grace", 0, "DURATION", "let the holder go on for so long (0s)", false},
    OptionSpec{OptionId::kReason, "reason", 0, "TEXT", "why, for the holder and the audit trail", false},
    OptionSpec{OptionId::kFollow, "follow", 0, nullptr, "go on with what happens from now on", false},
    OptionSpec{OptionId::kLimit, "limit", 0, "N", "only the last N (0: all that are kept)", false},
    OptionSpec{OptionId::kNewEpoch, "new-epoch", 0, nullptr, "fence every lease and begin greater tokens", false},
    OptionSpec{OptionId::kPoweredOff, "i-have-powered-it-off", 0, nullptr, "the host is off: you have seen to it",
               false},
    OptionSpec{OptionId::kValid, "valid", 0, "DURATION", "the token can be used for so long (1h)", false},
    OptionSpec{OptionId::kAddress, "address", 0, "LIST", "where other hosts reach this one: HOST:PORT,...", false},
    OptionSpec{OptionId::kTree, "tree", 0, nullptr, "below the hosts that the devices are plugged into", false},
    OptionSpec{OptionId::kUndo, "undo", 0, nullptr, "take out again what was put in", false},
    OptionSpec{OptionId::kStatus, "status", 0, nullptr, "only say how things are", false},
};

// GLib calls this for each option with the name as it was given, and with "" for each word.
gboolean on_argument(const gchar* name, const gchar* value, gpointer data, GError** /*error*/) noexcept {
  auto* out = static_cast<RawArguments*>(data);
  const std::string_view given = name != nullptr ? name : "";
  const std::string text = value != nullptr ? value : "";
  if (const auto* spec = find_option(given); spec != nullptr) {
    out->options[spec->id] = text;
  } else {
    out->words.push_back(text);
  }
  return TRUE;
}

gpointer callback_pointer() { return reinterpret_cast<gpointer>(on_argument); }

// Where "--" ends the options; the number of arguments: nowhere. GLib takes "--optional=no" for "--optional"; that is
// kBadInput.
Result<std::size_t> end_of_options(const std::vector<std::string>& arguments) {
  std::size_t i = 0;
  for (; i < arguments.size() && arguments[i] != "--"; ++i) {
    const auto* spec = find_option(arguments[i]);
    if (spec == nullptr) continue;
    const bool has_value = arguments[i].find('=') != std::string::npos;
    if (spec->value == nullptr && has_value) {
      return fail(ErrorCode::kBadInput, std::string("--") + spec->long_name + " takes no value; leave it out or in");
    }
    if (spec->value != nullptr && !has_value) ++i;
  }
  return std::min(i, arguments.size());
}

std::vector<GOptionEntry> glib_entries() {
  std::vector<GOptionEntry> entries;
  entries.reserve(std::size(kOptions) + 2);
  // FILENAME: the bytes as they came; otherwise GLib converts from the locale and fails on UTF-8 in the C locale.
  const gint with_value = G_OPTION_FLAG_FILENAME;
  for (const auto& spec : kOptions) {
    entries.push_back({spec.long_name, spec.short_name, spec.value != nullptr ? with_value : G_OPTION_FLAG_NO_ARG,
                       G_OPTION_ARG_CALLBACK, callback_pointer(), nullptr, nullptr});
  }
  entries.push_back({G_OPTION_REMAINING, 0, with_value, G_OPTION_ARG_CALLBACK, callback_pointer(), nullptr, nullptr});
  entries.push_back({});
  return entries;
}

}  // namespace

std::span<const OptionSpec> all_options() { return kOptions; }

const OptionSpec* find_option(std::string_view text) {
  const std::string_view name = text.substr(0, text.find('='));
  const auto match = [&](const OptionSpec& spec) {
    if (name.starts_with("--")) return name.substr(2) == spec.long_name;
    return name.size() == 2 && name[0] == '-' && name[1] == spec.short_name;
  };
  const auto* found = std::find_if(kOptions.begin(), kOptions.end(), match);
  return found != kOptions.end() ? found : nullptr;
}

const OptionSpec& option_spec(OptionId id) {
  const auto* found =
      std::find_if(kOptions.begin(), kOptions.end(), [&](const OptionSpec& spec) { return spec.id == id; });
  if (found == kOptions.end()) std::abort();
  return *found;
}

Result<RawArguments> read_arguments(const std::vector<std::string>& arguments) {
  const auto end = end_of_options(arguments);
  if (!end) return tl::unexpected(end.error());
  RawArguments out;
  const GPtr<GOptionContext, g_option_context_free> context(g_option_context_new(nullptr));
  g_option_context_set_help_enabled(context.get(), FALSE);
  GOptionGroup* group = g_option_group_new("usblease", "", "", &out, nullptr);
  g_option_group_add_entries(group, glib_entries().data());
  g_option_context_set_main_group(context.get(), group);  // takes the group

  const GPtr<GStrvBuilder, g_strv_builder_unref> builder(g_strv_builder_new());
  g_strv_builder_add(builder.get(), "usblease");
  for (const auto& argument : arguments) g_strv_builder_add(builder.get(), argument.c_str());
  GStrv strings = g_strv_builder_end(builder.get());
  GErrorOut error;
  const gboolean good = g_option_context_parse_strv(context.get(), &strings, error.out());
  g_strfreev(strings);
  if (good == FALSE) {
    return fail(ErrorCode::kBadInput, printable_message(error.message()) + "; see `usblease help`");
  }
  if (*end < arguments.size()) out.before_dashes = out.words.size() - (arguments.size() - *end - 1);
  return out;
}

}  // namespace usblease::cli
