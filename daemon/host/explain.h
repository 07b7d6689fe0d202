// Sentences about why a guest does not get a device: who holds it, until when, what to type.
#pragma once

#include <cstdint>
#include <string>

#include "command.pb.h"

namespace usblease::host {

enum class Asked : std::uint8_t { kAtStart, kWhileRunning };

// From a reply that is not CODE_OK. `guest` is who asked.
std::string explain(const command::Reply& reply, const std::string& guest, Asked asked);

// Why a lock was not granted.
std::string explain_lock(const command::Reply& reply);

}  // namespace usblease::host
