// What a host may say to the coordinator: of itself, everything; for another host, nothing. Pure.
#pragma once

#include <optional>
#include <string>

#include "command.pb.h"
#include "daemon/lease/state.h"
#include "peer.pb.h"

namespace usblease::cluster {

// `host_id`: whom the sender's certificate names. Why it may not send this, or nullopt. A principal without a host in
// it gets the sender's: hosts are believed who their own users are, nobody else's. `state`: to see whose request a
// cancellation is about; nullptr: not looked at.
std::optional<std::string> restrict_command(const std::string& host_id, const lease::State* state,
                                            command::Command& command);
std::optional<std::string> restrict_renewal(const std::string& host_id, const peer::Renewal& renewal);
std::optional<std::string> restrict_forward(const peer::Forward& forward);

}  // namespace usblease::cluster
