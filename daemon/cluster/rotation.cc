// New certificates for hosts that have one, and the list of those that nobody should believe any more
// (docs/cluster.md, "Certificates").
//
// A host asks for a new one when `cluster rotate` wants it, or when the present one ends in a third of its life. It
// makes a new key, has it certified by the coordinator over the connection that its present certificate authenticates,
// writes both to disk, uses them for whatever is connected from then on, and says so; only then the certificates before
// it are revoked. After a crash at any point the host shows a certificate that is still good, and asks again.
#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/cluster/cluster_membership.h"
#include "daemon/cluster/identity.h"
#include "daemon/lease/keys.h"
#include "join.pb.h"

namespace usblease::cluster {
namespace {

constexpr std::size_t kRevocationsMax = 1'000;  // a list of so many is below kPemBytesMax

bool ends_soon(std::uint64_t end_unix_s) { return end_unix_s < wall_clock_unix_s() + kCertificateLifeS / 3; }

Result<record::Certificate> describe(const std::string& certificate) {
  auto serial = serial_of(certificate);
  if (!serial) return tl::unexpected(serial.error());
  record::Certificate out;
  out.set_serial(std::move(*serial));
  out.set_end_unix_s(wall_clock_unix_s() + kCertificateLifeS);
  return out;
}

// Every host computes the same from the same members. Where there are too many for one list, those that last longest.
std::set<std::string> revoked_of(const std::vector<record::Member>& members) {
  std::set<std::pair<std::uint64_t, std::string>> by_end;
  for (const record::Member& member : members) {
    for (const record::Certificate& certificate : member.revoked())
      by_end.emplace(certificate.end_unix_s(), certificate.serial());
  }
  while (by_end.size() > kRevocationsMax) by_end.erase(by_end.begin());
  std::set<std::string> out;
  for (const auto& [end_unix_s, serial] : by_end) out.insert(serial);
  return out;
}

const store::Entry* find_entry(const store::ReadResult& all, const char* key) {
  const auto found =
      std::find_if(all.entries.begin(), all.entries.end(), [&](const auto& entry) { return entry.key == key; });
  return found == all.entries.end() ? nullptr : &*found;
}

}  // namespace

// --- At the coordinator ------------------------------------------------------------------------------------

// A certificate by the cluster's CA, which is on record before anybody has it: else it could never be revoked.
void ClusterMembership::sign(const std::string& host_id, const std::string& certificate_request,
                             const std::vector<std::string>& addresses, std::function<void(Result<std::string>)> done) {
  store_->read(lease::kAuthorityKey, [this, alive = std::weak_ptr(alive_), host_id, certificate_request, addresses,
                                      done = std::move(done)](const store::ReadResult& all) {
    if (alive.expired()) return;
    join::Authority record;
    const store::Entry* found = find_entry(all, lease::kAuthorityKey);
    if (!all.ok || found == nullptr || !record.ParseFromString(found->value))
      return done(fail(ErrorCode::kUnavailable, "the cluster's CA cannot be read: " + all.message));
    auto certificate = sign_host_request({record.certificate(), record.key()}, certificate_request,
                                         {options_.cluster_id, host_id, hosts_in(addresses)});
    if (!certificate) return done(fail(ErrorCode::kBadInput, certificate.error().message));
    const auto described = describe(*certificate);
    if (!described) return done(tl::unexpected(described.error()));
    command::Command command;
    command.mutable_note_certificate()->set_host_id(host_id);
    *command.mutable_note_certificate()->mutable_certificate() = *described;
    node_.router().submit(std::move(command), [done, certificate](const command::Reply& reply) {
      if (reply.status().code() == command::CODE_OK) return done(*certificate);
      done(fail(ErrorCode::kUnavailable, reply.status().message()));
    });
  });
}

void ClusterMembership::rotate(std::string principal, Done<api::ClusterRotateReply> done) {
  command::Command command;
  command.mutable_rotate_certificates()->set_principal(std::move(principal));
  node_.router().submit(std::move(command), [this, alive = std::weak_ptr(alive_), done](const command::Reply& reply) {
    if (alive.expired()) return;
    if (reply.status().code() != command::CODE_OK)
      return done(
          fail(reply.status().code() == command::CODE_UNAVAILABLE ? ErrorCode::kUnavailable : ErrorCode::kRefused,
               reply.status().message()));
    api::ClusterRotateReply out;
    out.set_hosts(reply.hosts());
    done(out);
    follow();
  });
}

// Why this host gets no certificate now; empty: it does. One after the other, so that what goes wrong goes wrong once;
// a host that is gone is not waited for.
std::string ClusterMembership::not_now(const std::string& host_id) const {
  const lease::State* known = state();
  if (known == nullptr) return "this host is not the coordinator";
  const auto asking = known->members.find(host_id);
  if (asking == known->members.end() || asking->second.standing() != record::STANDING_JOINED)
    return host_id + " is not a host of this cluster";
  const record::Member& member = asking->second;
  const bool unfinished = member.certificates_size() > 1;
  const bool ends = member.certificates().empty() || ends_soon(member.certificates(0).end_unix_s());
  if (!member.rotate()) return unfinished || ends ? "" : "the certificate of " + host_id + " is good for long";
  for (const auto& [id, other] : known->members) {
    const auto host = known->hosts.find(id);
    const bool live = host != known->hosts.end() && !host->second.gone();
    if (id == host_id || !live || other.standing() != record::STANDING_JOINED) continue;
    if (other.certificates_size() > 1 || (other.rotate() && id < host_id)) return "it is the turn of " + id;
  }
  return "";
}

bool ClusterMembership::answer_peer(const std::string& host_id, const peer::PeerRequest& request,
                                    std::function<void(peer::PeerAnswer)> answer) {
  if (!request.has_certify()) return false;
  const auto refuse = [answer](command::Code code, const std::string& why) {
    peer::PeerAnswer out;
    out.mutable_failed()->set_code(code);
    out.mutable_failed()->set_message(why);
    answer(std::move(out));
  };
  if (const std::string why = not_now(host_id); !why.empty()) {
    refuse(command::CODE_UNAVAILABLE, why);
    return true;
  }
  const record::Member& member = state()->members.at(host_id);
  sign(host_id, request.certify().certificate_request(), {member.addresses().begin(), member.addresses().end()},
       [this, host_id, answer = std::move(answer), refuse](const Result<std::string>& certificate) {
         const auto authorities = read_small_file(directory(), kAuthoritiesFile);
         if (!certificate || !authorities)
           return refuse(command::CODE_UNAVAILABLE,
                         certificate ? authorities.error().message : certificate.error().message);
         log::info("a host got a new certificate", {{"HOST", host_id}});
         peer::PeerAnswer out;
         out.mutable_certified()->set_certificate(*certificate);
         out.mutable_certified()->set_authorities(*authorities);
         answer(std::move(out));
       });
  return true;
}

// --- At the host whose certificate it is -----------------------------------------------------------------------

void ClusterMembership::rotate_if_due(const record::Member& self) {
  if (rotating_) return;
  const auto identity = load_identity(directory());
  if (!identity) return log::warning("this host's certificate cannot be read", {{"ERROR", identity.error().message}});
  const auto serial = serial_of(identity->certificate);
  if (!serial) return;
  const auto& known = self.certificates();
  const bool newest = !known.empty() && known[known.size() - 1].serial() == *serial;
  if (newest && known.size() > 1) note_in_use(known[known.size() - 1]);
  const bool unfinished = known.size() > 1 && !newest;
  if (!self.rotate() && !unfinished && !ends_soon(identity->validity.end_unix_s)) return;
  auto request = make_host_request(options_.host_id);
  if (!request) return log::warning("no key can be made", {{"ERROR", request.error().message}});
  peer::PeerRequest asked;
  asked.mutable_certify()->set_certificate_request(request->request);
  const auto answered = [this, alive = std::weak_ptr(alive_), request = *request](const peer::PeerAnswer* answer) {
    if (alive.expired()) return;
    rotating_ = false;
    if (answer == nullptr || !answer->has_certified())
      return log::debug("no new certificate now", {{"ERROR", answer == nullptr ? "" : answer->failed().message()}});
    take_certificate(request, answer->certified());
  };
  rotating_ = true;
  if (state() != nullptr) {
    answer_peer(options_.host_id, asked,
                [answered](const peer::PeerAnswer& answer) { post([answered, answer] { answered(&answer); }); });
  } else if (node_.calls() == nullptr ||
             !node_.calls()->ask(node_.router().coordinator().host_id(), std::move(asked), answered)) {
    rotating_ = false;
  }
}

void ClusterMembership::take_certificate(const HostRequest& request, const peer::Certified& certified) {
  const auto complain = [](const Error& error) {
    log::warning("a new certificate cannot be used; the old one stays", {{"ERROR", error.message}});
  };
  const auto before = load_identity(directory());
  if (!before) return complain(before.error());
  auto identity = make_identity(certified.authorities(), certified.certificate(), request.key);
  if (!identity) return complain(identity.error());
  if (identity->host_id != before->host_id || identity->cluster_id != before->cluster_id)
    return complain({ErrorCode::kRefused, "it is of another host or cluster"});
  const auto described = describe(identity->certificate);
  if (!described) return complain(described.error());
  if (auto saved = save_identity(directory(), *identity); !saved) return complain(saved.error());
  hooks_.identity(*identity);
  etcd_.reset();
  log::info("this host has a new certificate", {{"SERIAL", described->serial()}});
  note_in_use(*described);
}

void ClusterMembership::note_in_use(const record::Certificate& certificate) {
  command::Command command;
  command::NoteCertificate& c = *command.mutable_note_certificate();
  c.set_host_id(options_.host_id);
  *c.mutable_certificate() = certificate;
  c.set_in_use(true);
  node_.router().submit(std::move(command), [](const command::Reply& /*else the next poll says it again*/) {});
}

// --- The list of revocations -------------------------------------------------------------------------------------

// At the coordinator: what the store has is what the record says.
void ClusterMembership::keep_revocations() {
  const lease::State* known = state();
  if (known == nullptr || publishing_) return;
  std::vector<record::Member> members;
  for (const auto& [id, member] : known->members) members.push_back(member);
  const std::set<std::string> serials = revoked_of(members);
  if (published_ == serials) return;
  publishing_ = true;
  store_->read("", [this, alive = std::weak_ptr(alive_), serials](const store::ReadResult& all) {
    if (alive.expired()) return;
    publishing_ = false;
    if (all.ok && state() != nullptr) publish_revocations(serials, all);
  });
}

void ClusterMembership::publish_revocations(const std::set<std::string>& serials, const store::ReadResult& all) {
  const store::Entry* authority = find_entry(all, lease::kAuthorityKey);
  const store::Entry* present = find_entry(all, lease::kRevocationsKey);
  join::Authority record;
  if (authority == nullptr || !record.ParseFromString(authority->value)) return;  // an etcd and a CA of the site
  if (present != nullptr) {
    const auto revoked = revoked_in(present->value);
    if (revoked && *revoked == serials) {
      published_ = serials;
      return;
    }
  }
  const auto list = make_revocations({record.certificate(), record.key()}, serials);
  if (!list) return log::error("the list of revocations cannot be made", {{"ERROR", list.error().message}});
  store::Txn txn;
  txn.guards.push_back(
      {lease::kCoordinatorKey, store::Guard::What::kModRevision, node_.coordinator()->election().key_revision()});
  txn.guards.push_back(
      {lease::kRevocationsKey, store::Guard::What::kModRevision, present == nullptr ? 0 : present->mod_revision});
  txn.writes.push_back({lease::kRevocationsKey, *list, false});
  publishing_ = true;
  store_->commit(std::move(txn), [this, alive = std::weak_ptr(alive_), serials](const store::TxnResult& result) {
    if (alive.expired()) return;
    publishing_ = false;
    if (result.outcome != store::Outcome::kDone) return;  // the next poll looks again
    published_ = serials;
    log::info("the list of revoked certificates has changed", {{"CERTIFICATES", std::to_string(serials.size())}});
    follow();
  });
}

// On a host with a store member: its file is what the store has. It is read only when the members say that it differs.
void ClusterMembership::take_revocations(const std::vector<record::Member>& members) {
  if (store_ == nullptr) return;
  const auto present = read_small_file(directory(), kRevocationsFile);
  const auto revoked = present ? revoked_in(*present) : tl::unexpected(present.error());
  if (revoked && *revoked == revoked_of(members)) return;
  store_->read(lease::kRevocationsKey, [this, alive = std::weak_ptr(alive_)](const store::ReadResult& all) {
    const store::Entry* found = find_entry(all, lease::kRevocationsKey);
    if (alive.expired() || !all.ok || found == nullptr || !revoked_in(found->value)) return;
    if (auto written = write_durably(directory(), kRevocationsFile, found->value, 0644); !written)
      log::warning("the list of revoked certificates cannot be written", {{"ERROR", written.error().message}});
  });
}

}  // namespace usblease::cluster
