// The verbs of usblease: one file each, one table of all.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/interrupt.h"
#include "cli/options.h"
#include "common/error.h"

namespace usblease::cli {

inline constexpr const char* kDefaultSocket = "/run/usblease/usbleased.sock";

// What holds for every command of one run of the program.
struct Globals {
  std::string socket_path = kDefaultSocket;
  bool quiet = false;
  bool json = false;
  std::uint64_t timeout_s = 30;
};

enum class ArgumentKind : std::uint8_t { kGuest, kDevice, kVerb, kHost, kFile, kToken, kLock, kCommand };

struct Invocation;

struct Context {
  const Globals& globals;
  Interrupt& interrupt;
  std::optional<std::uint8_t> exit_code = std::nullopt;  // of the program, whatever else became of the command
};

struct Verb {
  const char* name;  // one word or two: "list", "host info"
  const char* summary;
  std::vector<ArgumentKind> arguments;
  bool last_repeats = false;        // the last argument may be given again and again
  bool arguments_optional = false;  // none at all is fine too
  std::vector<OptionId> options;    // beside the global ones
  std::vector<OptionId> required;   // subset of options
  Result<void> (*run)(const Invocation&, Context&);
};

// One command, checked: everything that can be known without the daemon is right.
struct Invocation {
  const Verb* verb = nullptr;
  Globals globals;
  bool help = false;
  bool version = false;
  std::string guest;
  std::vector<std::string> devices;
  std::vector<std::string> words;  // the arguments as given
  std::optional<std::uint64_t> wait_s;
  std::optional<std::uint64_t> for_s;
  std::optional<std::uint64_t> grace_s;
  std::optional<std::int32_t> priority;
  std::optional<std::uint32_t> limit;
  std::string reason;
  bool optional = false;
  bool follow = false;
  bool tree = false;
  bool undo = false;
  bool status = false;
  std::string host;
  std::optional<std::uint64_t> valid_s;
  std::vector<std::string> addresses;
};

std::span<const Verb> all_verbs();

// The verb that `words` begin with, two words before one; nullptr: none. `used` is set to the number of its words.
const Verb* find_verb(const std::vector<std::string>& words, std::size_t* used);

// "attach GUEST DEVICE... [--wait DURATION]": as help prints it.
std::string synopsis(const Verb& verb);

// Each in its own file, verb_NAME.cc. They ask the daemon, print to stdout, and return what went wrong.
Result<void> verb_list(const Invocation& invocation, Context& context);
Result<void> verb_info(const Invocation& invocation, Context& context);
Result<void> verb_attach(const Invocation& invocation, Context& context);
Result<void> verb_detach(const Invocation& invocation, Context& context);
Result<void> verb_assign(const Invocation& invocation, Context& context);
Result<void> verb_unassign(const Invocation& invocation, Context& context);
Result<void> verb_revoke(const Invocation& invocation, Context& context);
Result<void> verb_extend(const Invocation& invocation, Context& context);
Result<void> verb_lock(const Invocation& invocation, Context& context);
Result<void> verb_queue(const Invocation& invocation, Context& context);
Result<void> verb_events(const Invocation& invocation, Context& context);
Result<void> verb_host_info(const Invocation& invocation, Context& context);
Result<void> verb_host_drain(const Invocation& invocation, Context& context);
Result<void> verb_host_undrain(const Invocation& invocation, Context& context);
Result<void> verb_host_install_qemu_module(const Invocation& invocation, Context& context);
Result<void> verb_host_declare_dead(const Invocation& invocation, Context& context);
Result<void> verb_cluster_init(const Invocation& invocation, Context& context);
Result<void> verb_cluster_add(const Invocation& invocation, Context& context);
Result<void> verb_cluster_join(const Invocation& invocation, Context& context);
Result<void> verb_cluster_status(const Invocation& invocation, Context& context);
Result<void> verb_cluster_transfer(const Invocation& invocation, Context& context);
Result<void> verb_cluster_remove(const Invocation& invocation, Context& context);
Result<void> verb_cluster_rotate(const Invocation& invocation, Context& context);
Result<void> verb_cluster_leave(const Invocation& invocation, Context& context);
Result<void> verb_cluster_repair(const Invocation& invocation, Context& context);
Result<void> verb_cluster_backup(const Invocation& invocation, Context& context);
Result<void> verb_cluster_restore(const Invocation& invocation, Context& context);
Result<void> verb_status(const Invocation& invocation, Context& context);
Result<void> verb_help(const Invocation& invocation, Context& context);
Result<void> verb_version(const Invocation& invocation, Context& context);

}  // namespace usblease::cli
