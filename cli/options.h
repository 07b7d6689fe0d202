// The options of all verbs in one table. Each has one meaning and one type wherever it is allowed, so a command line
// can be read before its verb is known and options may stand anywhere.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"

namespace usblease::cli {

enum class OptionId : std::uint8_t {
  kConnect,
  kQuiet,
  kJson,
  kTimeout,
  kHelp,
  kVersion,
  kWait,
  kFor,
  kPriority,
  kOptional,
  kGrace,
  kReason,
  kFollow,
  kLimit,
  kNewEpoch,
  kPoweredOff,
  kValid,
  kAddress,
  kTree,
  kUndo,
  kStatus,
};

struct OptionSpec {
  OptionId id;
  const char* long_name;
  char short_name;    // 0: none
  const char* value;  // what stands for the value in help; nullptr: the option takes none
  const char* summary;
  bool global;  // allowed with every verb
};

std::span<const OptionSpec> all_options();
const OptionSpec& option_spec(OptionId id);

// The option that `text` names: "--wait", "--wait=5", "-c"; nullptr: none.
const OptionSpec* find_option(std::string_view text);

// A command line cut into words and options; nothing but the options' names is checked yet.
struct RawArguments {
  std::vector<std::string> words;
  std::map<OptionId, std::string> options;   // the last one wins; "" for those without a value
  std::optional<std::size_t> before_dashes;  // how many of the words stood before a "--"
};

// `arguments`: without the program's name. kBadInput names the option that is not known or lacks its value.
Result<RawArguments> read_arguments(const std::vector<std::string>& arguments);

}  // namespace usblease::cli
