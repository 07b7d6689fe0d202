// Transactions and records as etcd's messages, and back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/error.h"
#include "daemon/store/store.h"
#include "etcd.pb.h"

namespace usblease::store {

// `lease_id`: of the owned keys. Values are sealed under the key without `prefix`, so that a record may move to another
// prefix.
etcdserverpb::TxnRequest encode_txn(const Txn& txn, const std::string& prefix, std::int64_t lease_id);

// Done, or refused by a guard; then the message names one that did not hold.
TxnResult decode_txn(const etcdserverpb::TxnResponse& response, const Txn& txn);

// The keys that begin with `prefix`; at most `limit` from `from` on (empty: from the first).
etcdserverpb::RangeRequest encode_range(const std::string& prefix, const std::string& from, std::int64_t limit,
                                        std::uint64_t revision);

// kRefused: a key outside `prefix`, or a value that does not unseal; the message names it.
Result<Entry> decode_entry(const etcdserverpb::KeyValue& kv, const std::string& prefix);

// The same for a watch; `revision` is the change's.
Result<WatchUpdate> decode_event(const etcdserverpb::Event& event, const std::string& prefix);

}  // namespace usblease::store
