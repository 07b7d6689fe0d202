// Clients' requests that only the coordinator can answer, on their way between hosts: as the same bytes.
#pragma once

#include <functional>

#include "daemon/api/credentials.h"
#include "daemon/api/responder.h"
#include "daemon/cluster/peer_service.h"
#include "daemon/cluster/router.h"

namespace usblease::api {

// Answered from the coordinator's state; what is not is this host's own business.
bool asks_coordinator(const ClientFrame& frame);

// Sends `frame` to the coordinator on another host. `answered` gets each answer (more: further ones follow). `lost`:
// the coordinator went away before the last one. Gives the router's number, for abandon(); 0: there is none to ask, and
// nothing is called.
std::uint64_t forward(cluster::Router& router, const Caller& caller, const ClientFrame& frame,
                      const std::function<void(ServerFrame&)>& answered, std::function<void()> lost);

// A request that came from another host. Calls `handle` as the server would for a client of this one; gives what to
// call when that client is gone.
std::function<void()> serve_forwarded(
    cluster::ForwardedCall call,
    const std::function<void(const Caller&, const ClientFrame&, const Responder&)>& handle);

}  // namespace usblease::api
