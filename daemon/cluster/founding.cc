#include "daemon/cluster/founding.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/text.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/join_token.h"
#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"
#include "daemon/store/etcd_store.h"
#include "join.pb.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kRetryNs = 200 * kNsPerMs;
constexpr std::uint64_t kWithinNs = 25'000 * kNsPerMs;  // below the command line's --timeout
constexpr std::size_t kWritesPerTxn = 256;

store::EtcdOptions etcd_options(const std::string& directory, const std::string& prefix, const std::string& endpoint) {
  store::EtcdOptions options;
  options.endpoints = {endpoint};
  options.ca_file = directory + "/" + kAuthoritiesFile;
  options.cert_file = directory + "/" + kCertificateFile;
  options.key_file = directory + "/" + kKeyFile;
  options.key_prefix = prefix;
  return options;
}

}  // namespace

Founding::Founding(const MembershipOptions& options, store::Store& from, std::vector<std::string> addresses,
                   std::string principal, Done done)
    : options_(options),
      from_(from),
      addresses_(std::move(addresses)),
      principal_(std::move(principal)),
      done_(std::move(done)) {}

void Founding::start() {
  give_up_ns_ = boottime_now_ns() + kWithinNs;
  auto made = make_identity_files();
  if (made) made = start_member();
  if (!made) return give_up(made.error());
  wait_for_member();
}

Result<void> Founding::make_identity_files() {
  const auto authority = make_authority(options_.cluster_id);
  if (!authority) return tl::unexpected(authority.error());
  const auto request = make_host_request(options_.host_id);
  if (!request) return tl::unexpected(request.error());
  const auto certificate =
      sign_host_request(*authority, request->request, {options_.cluster_id, options_.host_id, hosts_in(addresses_)});
  if (!certificate) return tl::unexpected(certificate.error());
  const auto identity = make_identity(authority->certificate, *certificate, request->key);
  if (!identity) return tl::unexpected(identity.error());
  if (auto saved = save_identity(directory(), *identity); !saved) return saved;
  join::Authority record;
  record.set_certificate(authority->certificate);
  record.set_key(authority->key);
  entries_.emplace_back(lease::kAuthorityKey, record.SerializeAsString());
  const auto revocations = make_revocations(*authority, {});
  if (!revocations) return tl::unexpected(revocations.error());
  if (auto saved = write_durably(directory(), kRevocationsFile, *revocations, 0644); !saved) return saved;
  entries_.emplace_back(lease::kRevocationsKey, *revocations);
  const auto serial = serial_of(*certificate);
  if (!serial) return tl::unexpected(serial.error());
  record::Certificate& own = *self_.add_certificates();
  own.set_serial(*serial);
  own.set_end_unix_s(identity->validity.end_unix_s);
  self_.set_host_id(options_.host_id);
  for (const std::string& address : addresses_) self_.add_addresses(address);
  self_.set_key_sha256(hash_join_secret(request->request));
  return write_durably(directory(), kAuthorityKeyFile, authority->key, 0600);
}

Result<void> Founding::start_member() {
  const auto place = store_place(options_.listen, addresses_.front());
  if (!place) return tl::unexpected(place.error());
  EtcdMemberOptions options;
  options.directory = directory() + "/etcd";
  options.identity_directory = directory();
  options.boot_id = options_.boot_id;
  options.cluster_id = options_.cluster_id;
  options.name = options_.host_id;
  options.listen_address = place->listen_address;
  options.advertise_host = place->advertise_host;
  options.client_port = place->client_port;
  options.peer_port = place->peer_port;
  options.heartbeat_ms = options_.heartbeat_ms;
  options.election_ms = options_.election_ms;
  member_ = std::make_unique<EtcdMember>(options, [](EtcdState /*state*/, const std::string& /*logged there*/) {});
  self_.mutable_store()->set_role(record::STORE_ROLE_VOTER);
  self_.mutable_store()->set_client_url(member_->client_url());
  self_.mutable_store()->set_peer_url(member_->peer_url());
  if (auto made = EtcdMember::create(options, {{{options_.host_id, member_->peer_url()}}, false}); !made) return made;
  if (auto started = member_->start(); !started) return started;
  if (member_->state() != EtcdState::kRunning) return fail(ErrorCode::kUnavailable, member_->trouble());
  auto opened = store::open_etcd_store(
      etcd_options(directory(), options_.store_prefix + options_.cluster_id + "/", member_->local_endpoint()), post);
  if (!opened) return tl::unexpected(opened.error());
  to_ = std::move(*opened);
  return {};
}

void Founding::wait_for_member() {
  to_->read("", [this](const store::ReadResult& all) {
    if (all.ok && all.entries.empty()) return stop_writers();
    if (all.ok) return give_up({ErrorCode::kInternal, "the new store is not empty"});
    if (boottime_now_ns() > give_up_ns_)
      return give_up({ErrorCode::kUnavailable, "the new store member does not answer: " + all.message});
    retry_ = run_after(kRetryNs, [this] { wait_for_member(); });
  });
}

// The coordinator's own guard keeps it from writing once the key is not its own any more: so what is read after that is
// the last state that anybody was told of.
void Founding::stop_writers() {
  from_.read(lease::kCoordinatorKey, [this](const store::ReadResult& all) {
    if (!all.ok) return give_up({ErrorCode::kUnavailable, "cannot read the present store: " + all.message});
    take_key(all);
  });
}

void Founding::take_key(const store::ReadResult& all) {
  record::Coordinator mover;
  mover.set_host_id("moving");  // not a host that could stand, and not this one: its former key it may take back

  mover.set_nonce("moving-" + random_hex(8));
  std::uint64_t revision = 0;
  for (const store::Entry& entry : all.entries) {
    record::Coordinator before;
    if (entry.key != lease::kCoordinatorKey || !before.ParseFromString(entry.value)) continue;
    revision = entry.mod_revision;
    mover.set_term(before.term());
  }
  // Deleted and put anew: the guard of the coordinator is the revision at which its key was created.
  store::Txn deletion;
  deletion.guards.push_back({lease::kCoordinatorKey, store::Guard::What::kModRevision, revision});
  deletion.writes.push_back({lease::kCoordinatorKey, std::nullopt, false});
  store::Txn put;
  put.guards.push_back({lease::kCoordinatorKey, store::Guard::What::kModRevision, 0});
  put.writes.push_back({lease::kCoordinatorKey, mover.SerializeAsString(), true});
  const auto taken = [this](const store::TxnResult& result) {
    if (result.outcome != store::Outcome::kDone)
      return give_up({ErrorCode::kUnavailable, "cannot stop the coordinator: " + result.message + "; try again"});
    key_taken_ = true;
    read_state();
  };
  if (revision == 0) return from_.commit(std::move(put), taken);
  // Begun in the order of the calls, so that nobody else comes between.
  from_.commit(std::move(deletion), [](const store::TxnResult& /*the put says it*/) {});
  from_.commit(std::move(put), taken);
}

void Founding::read_state() {
  from_.read("", [this](const store::ReadResult& all) {
    if (!all.ok) return give_up({ErrorCode::kUnavailable, "cannot read the present store: " + all.message});
    copy(all);
  });
}

void Founding::copy(const store::ReadResult& all) {
  std::vector<std::pair<std::string, std::string>> own;
  for (const store::Entry& entry : all.entries) {
    if (entry.key == lease::kTermKey) entries_.emplace_back(entry.key, entry.value);
    own.emplace_back(entry.key, entry.value);
  }
  auto state = lease::load(own);
  if (!state) return give_up(state.error());
  if (state->meta.format() == 0) *state = lease::make_state(options_.cluster_id);
  lease::Core core(std::move(*state));
  command::Command command;
  *command.mutable_found_cluster()->mutable_member() = self_;
  command.mutable_found_cluster()->set_principal(principal_);
  const auto decision = core.apply(command, lease::Context{wall_clock_unix_s()});
  if (decision.reply.status().code() != command::CODE_OK)
    return give_up({ErrorCode::kRefused, decision.reply.status().message()});
  for (const lease::Change& change : lease::encode(core.state())) entries_.emplace_back(change.key, *change.value);
  write_next();
}

void Founding::write_next() {
  if (written_ == entries_.size()) return check_copy();
  store::Txn txn;
  const std::size_t end = std::min(entries_.size(), written_ + kWritesPerTxn);
  for (std::size_t i = written_; i < end; ++i) {
    // A transaction that is repeated after a lost answer is refused; check_copy() then finds what it wrote.
    txn.guards.push_back({entries_[i].first, store::Guard::What::kModRevision, 0});
    txn.writes.push_back({entries_[i].first, entries_[i].second, false});
  }
  to_->commit(std::move(txn), [this, end](const store::TxnResult& result) {
    if (result.outcome == store::Outcome::kUnknown && boottime_now_ns() < give_up_ns_) {
      retry_ = run_after(kRetryNs, [this] { write_next(); });
      return;
    }
    if (result.outcome != store::Outcome::kDone && result.cause != store::Cause::kGuard)
      return give_up({ErrorCode::kUnavailable, "cannot write the new store: " + result.message});
    written_ = end;
    write_next();
  });
}

void Founding::check_copy() {
  to_->read("", [this](const store::ReadResult& all) {
    if (!all.ok) return give_up({ErrorCode::kUnavailable, "cannot read the new store: " + all.message});
    std::sort(entries_.begin(), entries_.end());
    const bool same = std::equal(all.entries.begin(), all.entries.end(), entries_.begin(), entries_.end(),
                                 [](const store::Entry& entry, const auto& wanted) {
                                   return entry.key == wanted.first && entry.value == wanted.second;
                                 });
    if (!same) return give_up({ErrorCode::kInternal, "the new store does not hold what was written"});
    finish();
  });
}

void Founding::finish() {
  members_ = members_of(options_.cluster_id, {self_});
  if (auto saved = save_members(directory() + "/members", members_); !saved) return give_up(saved.error());
  // From here on this host belongs to a cluster, whatever happens.
  api::ClusterInitReply reply;
  reply.set_cluster_id(options_.cluster_id);
  reply.set_host_id(options_.host_id);
  if (const auto archive = archive_own_store(options_.state_dir, {})) {
    reply.set_archived(*archive);
  } else {
    log::warning("the old store stays where it is", {{"ERROR", archive.error().message}});
    reply.set_archived(options_.state_dir + "/usblease.db");
  }
  done_(reply);
}

void Founding::give_up(const Error& error) {
  to_.reset();
  if (key_taken_) {
    store::Txn txn;
    txn.writes.push_back({lease::kCoordinatorKey, std::nullopt, false});
    from_.commit(std::move(txn), [](const store::TxnResult& /*it vanishes with this process, too*/) {});
  }
  const auto end = [done = done_, error, path = directory()] {
    if (auto removed = EtcdMember::destroy(path); !removed)
      log::warning("a cluster that was not made is not removed", {{"ERROR", removed.error().message}});
    done(tl::unexpected(error));
  };
  if (!member_) return post(end);
  member_->stop(end);
}

}  // namespace usblease::cluster
