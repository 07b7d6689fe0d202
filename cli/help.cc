#include "cli/help.h"

namespace usblease::cli {
namespace {

constexpr std::size_t kLeftColumns = 30;

std::string two_columns(const std::string& left, const char* right) {
  const std::size_t gap = left.size() < kLeftColumns ? kLeftColumns - left.size() : 2;
  return "  " + left + std::string(gap, ' ') + right + "\n";
}

std::string option_line(const OptionSpec& spec) {
  std::string left = spec.short_name != 0 ? std::string("-") + spec.short_name + ", " : "    ";
  left += std::string("--") + spec.long_name;
  if (spec.value != nullptr) left += std::string(" ") + spec.value;
  return two_columns(left, spec.summary);
}

}  // namespace

std::string general_help() {
  std::string out = "usage: usblease [OPTIONS] [VERB [ARGUMENTS]]\n\nWithout a verb: a shell.\n\nVerbs:\n";
  for (const auto& verb : all_verbs()) out += two_columns(verb.name, verb.summary);
  out += "\nOptions, before or after the verb:\n";
  for (const auto& spec : all_options()) out += spec.global ? option_line(spec) : "";
  return out + "\n`usblease help VERB` says more; so does usblease(1). A DURATION is 90, 90s, 15m, 2h30m or 1d.\n";
}

std::string help_on(const Verb& verb) {
  std::string out = "usage: usblease " + synopsis(verb) + "\n\n" + verb.summary + "\n";
  if (!verb.options.empty()) out += "\nOptions:\n";
  for (const OptionId id : verb.options) out += option_line(option_spec(id));
  return out;
}

}  // namespace usblease::cli
