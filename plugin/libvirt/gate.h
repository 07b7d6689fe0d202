// What a failure of the hook may do to the guest, which depends on libvirt's operation.
#pragma once

#include <cstring>
#include <initializer_list>

namespace usblease::hook {

enum class Gate : unsigned char {
  kNone,    // nothing is asked: an operation that is no concern of ours
  kStart,   // prepare, start, migrate, restore: without our yes the guest must not start
  kRefuse,  // started: the guest runs, only the daemon's refusal stops it
  kTell,    // stopped, release, reconnect: the daemon is told, and the outcome is always success
};

inline Gate gate_of(const char* operation) {
  for (const char* name : {"prepare", "start", "migrate", "restore"}) {
    if (std::strcmp(operation, name) == 0) return Gate::kStart;
  }
  if (std::strcmp(operation, "started") == 0) return Gate::kRefuse;
  for (const char* name : {"stopped", "release", "reconnect"}) {
    if (std::strcmp(operation, name) == 0) return Gate::kTell;
  }
  return Gate::kNone;
}

}  // namespace usblease::hook
