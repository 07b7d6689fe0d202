// Rolling upgrades: hosts say which format of the records and which version of the messages between hosts they
// understand; the cluster uses the greatest that all of them do, and never goes back. Pure.
//
// A new format is begun by one decision of the coordinator, so by one transaction, guarded by the key and with it the
// term: all records are migrated and the format is raised, or nothing happens. It is due when the last host that did
// not understand it has registered anew, or has been removed. A host that is only gone counts: it may come back as it
// was.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "daemon/lease/state.h"

namespace usblease::lease {

// Changes the records of a state from one format to the next, and adds the keys of what it changed.
using Migration = std::function<void(State& state, std::set<std::string>& changed_keys)>;

struct Versions {
  std::uint32_t record_format = 1;
  std::uint32_t peer_version = 1;
  std::map<std::uint32_t, Migration> migrations;  // by the format that it begins with; none: nothing to change
};

// What this version of usblease understands.
const Versions& own_versions();

// The greatest that all hosts of the cluster understand, and `own` too.
Versions common_versions(const State& state, const Versions& own);

}  // namespace usblease::lease
