#include "daemon/store/etcd_codec.h"

#include <algorithm>
#include <utility>

#include "common/text.h"
#include "daemon/store/envelope.h"

namespace usblease::store {
namespace {

// Read back when a guard does not hold, only to say which.
constexpr std::size_t kExplainedGuardsMax = 16;

void add_guard(etcdserverpb::Compare& compare, const Guard& guard, const std::string& prefix) {
  compare.set_result(etcdserverpb::Compare::EQUAL);
  compare.set_key(prefix + guard.key);
  const auto revision = static_cast<std::int64_t>(guard.revision);
  if (guard.what == Guard::What::kModRevision) {
    compare.set_target(etcdserverpb::Compare::MOD);
    compare.set_mod_revision(revision);
  } else {
    compare.set_target(etcdserverpb::Compare::CREATE);
    compare.set_create_revision(revision);
  }
}

void add_write(etcdserverpb::RequestOp& op, const Write& write, const std::string& prefix, std::int64_t lease_id) {
  if (!write.value) {
    op.mutable_request_delete_range()->set_key(prefix + write.key);
    return;
  }
  etcdserverpb::PutRequest& put = *op.mutable_request_put();
  put.set_key(prefix + write.key);
  put.set_value(seal(write.key, *write.value));
  if (write.owned) put.set_lease(lease_id);
}

std::string explain(const Guard& guard, const etcdserverpb::RangeResponse& now) {
  const std::string key = "key \"" + escape_text(guard.key) + "\"";
  if (now.kvs_size() == 0) return key + " is not there, revision " + std::to_string(guard.revision) + " was expected";
  const bool by_mod = guard.what == Guard::What::kModRevision;
  const auto revision = by_mod ? now.kvs(0).mod_revision() : now.kvs(0).create_revision();
  const std::string verb = by_mod ? " was changed" : " was created";
  if (guard.revision == 0) return key + " is there, although it should not be";
  return key + verb + " at revision " + std::to_string(revision) + " instead of " + std::to_string(guard.revision);
}

bool holds(const Guard& guard, const etcdserverpb::RangeResponse& now) {
  if (now.kvs_size() == 0) return guard.revision == 0;
  const bool by_mod = guard.what == Guard::What::kModRevision;
  return guard.revision ==
         static_cast<std::uint64_t>(by_mod ? now.kvs(0).mod_revision() : now.kvs(0).create_revision());
}

std::string failed_guard(const etcdserverpb::TxnResponse& response, const Txn& txn) {
  const std::size_t seen = std::min(txn.guards.size(), static_cast<std::size_t>(response.responses_size()));
  for (std::size_t i = 0; i < seen; ++i) {
    const auto& now = response.responses(static_cast<int>(i)).response_range();
    if (!holds(txn.guards[i], now)) return explain(txn.guards[i], now);
  }
  return "one of " + std::to_string(txn.guards.size()) + " guards did not hold";
}

}  // namespace

etcdserverpb::TxnRequest encode_txn(const Txn& txn, const std::string& prefix, std::int64_t lease_id) {
  etcdserverpb::TxnRequest request;
  for (const Guard& guard : txn.guards) add_guard(*request.add_compare(), guard, prefix);
  for (const Write& write : txn.writes) add_write(*request.add_success(), write, prefix, lease_id);
  const std::size_t explained = std::min(txn.guards.size(), kExplainedGuardsMax);
  for (std::size_t i = 0; i < explained; ++i) {
    etcdserverpb::RangeRequest& now = *request.add_failure()->mutable_request_range();
    now.set_key(prefix + txn.guards[i].key);
    now.set_keys_only(true);
  }
  if (txn.writes.empty()) {
    // A transaction without any operation counts as one that may be answered from an old state.
    etcdserverpb::RangeRequest& fresh = *request.add_success()->mutable_request_range();
    fresh.set_key(prefix);
    fresh.set_count_only(true);
  }
  return request;
}

TxnResult decode_txn(const etcdserverpb::TxnResponse& response, const Txn& txn) {
  const auto revision = static_cast<std::uint64_t>(response.header().revision());
  if (response.succeeded()) return {Outcome::kDone, Cause::kNone, revision, {}};
  return {Outcome::kRefused, Cause::kGuard, revision, failed_guard(response, txn)};
}

etcdserverpb::RangeRequest encode_range(const std::string& prefix, const std::string& from, std::int64_t limit,
                                        std::uint64_t revision) {
  etcdserverpb::RangeRequest request;
  request.set_key(from.empty() ? prefix : from);
  // To etcd, a lone NUL is "no end".
  request.set_range_end(prefix_end(prefix).value_or(std::string(1, '\0')));
  request.set_limit(limit);
  request.set_revision(static_cast<std::int64_t>(revision));
  return request;
}

Result<Entry> decode_entry(const etcdserverpb::KeyValue& kv, const std::string& prefix) {
  if (!kv.key().starts_with(prefix)) {
    return fail(ErrorCode::kRefused, "etcd answered with a key that was not asked for");
  }
  Entry entry;
  entry.key = kv.key().substr(prefix.size());
  entry.create_revision = static_cast<std::uint64_t>(kv.create_revision());
  entry.mod_revision = static_cast<std::uint64_t>(kv.mod_revision());
  auto value = unseal(entry.key, kv.value());
  if (!value) return tl::unexpected(value.error());
  entry.value = std::move(*value);
  return entry;
}

Result<WatchUpdate> decode_event(const etcdserverpb::Event& event, const std::string& prefix) {
  WatchUpdate update;
  if (event.type() == etcdserverpb::Event::PUT) {
    auto entry = decode_entry(event.kv(), prefix);
    if (!entry) return tl::unexpected(entry.error());
    update.revision = entry->mod_revision;
    update.key = std::move(entry->key);
    update.value = std::move(entry->value);
    return update;
  }
  if (!event.kv().key().starts_with(prefix)) {
    return fail(ErrorCode::kRefused, "etcd answered with a key that was not asked for");
  }
  update.revision = static_cast<std::uint64_t>(event.kv().mod_revision());
  update.key = event.kv().key().substr(prefix.size());
  return update;
}

}  // namespace usblease::store
