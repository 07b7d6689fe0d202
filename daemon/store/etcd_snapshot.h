// Receives a snapshot of etcd's database into a file.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "common/error.h"
#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_loop.h"

namespace usblease::store {

// As EtcdClient::snapshot; on the loop's thread.
void start_snapshot(EtcdLoop& loop, const EtcdEndpointPtr& endpoint, std::string path, std::chrono::milliseconds bound,
                    std::function<void(Result<EtcdSnapshot>)> done);

}  // namespace usblease::store
