// The store on etcd: several hosts, or an etcd that the site has already. docs/store.md says how it keeps the contract.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "daemon/store/etcd_client.h"
#include "daemon/store/store.h"

namespace usblease::store {

// Waits for nobody: an etcd that cannot be reached shows in health() and in the calls. The first use of an owned key
// asks for the owner's lease, which is revoked when the store is closed. kBadInput: an endpoint, a bound or the key
// prefix is wrong; kUnavailable: a PEM file cannot be read.
Result<std::unique_ptr<Store>> open_etcd_store(const EtcdOptions& options, Executor executor);

// For stores that are not on etcd these do nothing.

// Other endpoints from now on; those that stay keep their connections. kBadInput: nothing was changed.
Result<void> set_etcd_endpoints(Store& store, const std::vector<std::string>& endpoints);

// The files of certificate and key have changed: they are read again, and all connections made anew. A call that is
// under way may end with an unknown outcome. kUnavailable: a file cannot be read, and nothing was changed.
Result<void> reload_etcd_credentials(Store& store);

// The coordinator's store keeps an etcd of our own small: it drops history older than ten minutes, defragments one
// member after the other when that gives much back, and ends the alarm "no space" when there is room again. Never on
// for an etcd of the site: its history is not ours. Off at first.
void set_etcd_upkeep(Store& store, bool on);

}  // namespace usblease::store
