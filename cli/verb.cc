#include "cli/verb.h"

#include <algorithm>
#include <utility>

namespace usblease::cli {
namespace {

std::string argument_text(ArgumentKind kind) {
  switch (kind) {
    case ArgumentKind::kGuest:
      return "GUEST";
    case ArgumentKind::kDevice:
      return "DEVICE";
    case ArgumentKind::kVerb:
      return "VERB";
    case ArgumentKind::kHost:
      return "HOST";
    case ArgumentKind::kFile:
      return "FILE";
    case ArgumentKind::kToken:
      return "TOKEN";
    case ArgumentKind::kLock:
      return "NAME";
    case ArgumentKind::kCommand:
      return "-- COMMAND";
  }
  return "";
}

}  // namespace

std::span<const Verb> all_verbs() {
  using enum ArgumentKind;
  using enum OptionId;
  static const std::vector<Verb> kVerbs = {
      {.name = "list", .summary = "the devices, who has them and until when", .options = {kTree}, .run = verb_list},
      {.name = "info", .summary = "all about one device", .arguments = {kDevice}, .run = verb_info},
      {.name = "attach",
       .summary = "lease devices for a running guest and plug them in",
       .arguments = {kGuest, kDevice},
       .last_repeats = true,
       .options = {kWait, kFor, kPriority},
       .run = verb_attach},
      {.name = "detach",
       .summary = "unplug a device from a guest and give its lease back",
       .arguments = {kGuest, kDevice},
       .run = verb_detach},
      {.name = "assign",
       .summary = "let a guest have a device at each start",
       .arguments = {kGuest, kDevice},
       .options = {kOptional, kWait},
       .run = verb_assign},
      {.name = "unassign", .summary = "the reverse of assign", .arguments = {kGuest, kDevice}, .run = verb_unassign},
      {.name = "revoke",
       .summary = "take a device away from its holder",
       .arguments = {kDevice},
       .options = {kGrace, kReason},
       .required = {kReason},
       .run = verb_revoke},
      {.name = "extend",
       .summary = "move the end of a lease: so long from now",
       .arguments = {kDevice},
       .options = {kFor},
       .required = {kFor},
       .run = verb_extend},
      {.name = "lock",
       .summary = "run a command while this host holds a named lock",
       .arguments = {kLock, kCommand},
       .last_repeats = true,
       .options = {kWait, kPriority},
       .run = verb_lock},
      {.name = "queue", .summary = "who waits for a device", .arguments = {kDevice}, .run = verb_queue},
      {.name = "events", .summary = "the audit trail: what happened", .options = {kFollow, kLimit}, .run = verb_events},
      {.name = "host info", .summary = "this host: its fences, libvirt, relays", .run = verb_host_info},
      {.name = "host install-qemu-module",
       .summary = "let this host's QEMU stop devices by itself",
       .options = {kUndo, kStatus},
       .run = verb_host_install_qemu_module},
      {.name = "host drain",
       .summary = "let a host give its leases back, and nothing new to it",
       .arguments = {kHost},
       .options = {kGrace},
       .run = verb_host_drain},
      {.name = "host undrain", .summary = "the reverse of host drain", .arguments = {kHost}, .run = verb_host_undrain},
      {.name = "host declare-dead",
       .summary = "free what a host holds that is switched off",
       .arguments = {kHost},
       .options = {kPoweredOff},
       .required = {kPoweredOff},
       .run = verb_host_declare_dead},
      {.name = "cluster init",
       .summary = "make this host the first of a cluster",
       .options = {kAddress},
       .run = verb_cluster_init},
      {.name = "cluster add",
       .summary = "make a token with which a host can join",
       .arguments = {kHost},
       .options = {kValid},
       .run = verb_cluster_add},
      {.name = "cluster join",
       .summary = "let this host join with a token",
       .arguments = {kToken},
       .run = verb_cluster_join},
      {.name = "cluster status", .summary = "the hosts, their roles, and the store", .run = verb_cluster_status},
      {.name = "cluster transfer",
       .summary = "make another host the coordinator",
       .arguments = {kHost},
       .run = verb_cluster_transfer},
      {.name = "cluster remove",
       .summary = "take a host out of the cluster",
       .arguments = {kHost},
       .run = verb_cluster_remove},
      {.name = "cluster leave", .summary = "take this host out of the cluster", .run = verb_cluster_leave},
      {.name = "cluster repair",
       .summary = "go on with a store that went back in time",
       .options = {kNewEpoch},
       .required = {kNewEpoch},
       .run = verb_cluster_repair},
      {.name = "cluster rotate", .summary = "give each host a new certificate", .run = verb_cluster_rotate},
      {.name = "cluster backup",
       .summary = "write the store to a file",
       .arguments = {kFile},
       .run = verb_cluster_backup},
      {.name = "cluster restore",
       .summary = "take tokens and leases from a backup",
       .arguments = {kFile},
       .run = verb_cluster_restore},
      {.name = "status", .summary = "the cluster: coordinator, store, numbers", .run = verb_status},
      {.name = "help",
       .summary = "this list, or help on one verb",
       .arguments = {kVerb},
       .last_repeats = true,
       .arguments_optional = true,
       .run = verb_help},
      {.name = "version", .summary = "the version of this program", .run = verb_version},
  };
  return kVerbs;
}

const Verb* find_verb(const std::vector<std::string>& words, std::size_t* used) {
  std::string name;
  const Verb* found = nullptr;
  for (std::size_t count = 1; count <= std::min<std::size_t>(2, words.size()); ++count) {
    name += (count == 1 ? "" : " ") + words[count - 1];
    for (const auto& verb : all_verbs()) {
      if (name != verb.name) continue;
      found = &verb;
      *used = count;
    }
  }
  return found;
}

std::string synopsis(const Verb& verb) {
  std::string options;
  for (const OptionId id : verb.options) {
    const auto& spec = option_spec(id);
    const std::string text =
        std::string("--") + spec.long_name + (spec.value != nullptr ? std::string(" ") + spec.value : "");
    const bool required = std::find(verb.required.begin(), verb.required.end(), id) != verb.required.end();
    options += required ? " " + text : " [" + text + "]";
  }
  std::string out = verb.name;
  for (std::size_t i = 0; i < verb.arguments.size(); ++i) {
    const bool repeats = verb.last_repeats && i + 1 == verb.arguments.size();
    const std::string text = argument_text(verb.arguments[i]) + (repeats && !verb.arguments_optional ? "..." : "");
    // What follows a command's name is the command's.
    if (verb.arguments[i] == ArgumentKind::kCommand) out += std::exchange(options, "");
    out += verb.arguments_optional ? " [" + text + "]" : " " + text;
  }
  return out + options;
}

}  // namespace usblease::cli
