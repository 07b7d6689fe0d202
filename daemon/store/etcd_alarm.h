// Ends etcd's alarm "no space". etcd keeps one for each member that raised it, and ends one at a time.
#pragma once

#include <chrono>
#include <functional>

#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_loop.h"

namespace usblease::store {

// On the loop's thread. `done` gets the first error, or OK; each of the calls is bounded by `bound`.
void end_space_alarms(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::chrono::milliseconds bound,
                      std::function<void(const grpc::Status&)> done);

}  // namespace usblease::store
