#include "daemon/cluster/cluster_membership.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/text.h"
#include "daemon/cluster/founding.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/join_token.h"
#include "daemon/cluster/joining.h"
#include "daemon/cluster/transport.h"
#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kPollNs = 3'000 * kNsPerMs;       // a quiet cluster: one small message a host
constexpr std::uint64_t kPromotePollNs = 500 * kNsPerMs;  // while somebody copies the store
constexpr const char* kScheme = "https://";

// The name under which the record has a token; whoever has its secret finds it.
std::string token_id_of(const std::string& secret) { return hash_join_secret("token/" + secret).substr(0, 16); }

std::vector<record::Member> members_in(const lease::State& state) {
  std::vector<record::Member> out;
  for (const auto& [id, member] : state.members) out.push_back(member);
  return out;
}

std::pair<std::string, std::string> split_address(const std::string& address) {
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return {};
  std::string host = address.substr(0, colon);
  if (host.size() > 1 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {host, address.substr(colon + 1)};
}

// The first address of an interface that is up and not the loopback; IPv4 before IPv6.
std::string first_address() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return "";
  std::string found4;
  std::string found6;
  for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || (at->ifa_flags & IFF_UP) == 0 || (at->ifa_flags & IFF_LOOPBACK) != 0) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (at->ifa_addr->sa_family == AF_INET && found4.empty()) {
      const auto* address = reinterpret_cast<const sockaddr_in*>(at->ifa_addr);
      if (inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size()) != nullptr) found4 = text.data();
    } else if (at->ifa_addr->sa_family == AF_INET6 && found6.empty()) {
      const auto* address = reinterpret_cast<const sockaddr_in6*>(at->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr)) continue;
      if (inet_ntop(AF_INET6, &address->sin6_addr, text.data(), text.size()) != nullptr)
        found6 = "[" + std::string(text.data()) + "]";
    }
  }
  freeifaddrs(list);
  return found4.empty() ? found6 : found4;
}

Error error_of(const command::Status& status) {
  return {status.code() == command::CODE_NOT_FOUND     ? ErrorCode::kNotFound
          : status.code() == command::CODE_UNAVAILABLE ? ErrorCode::kUnavailable
          : status.code() == command::CODE_BAD_REQUEST ? ErrorCode::kBadInput
                                                       : ErrorCode::kRefused,
          status.message()};
}

}  // namespace

std::string without_scheme(const std::string& url) {
  return url.rfind(kScheme, 0) == 0 ? url.substr(std::string(kScheme).size()) : url;
}

// --- Addresses and files ---------------------------------------------------------------------------------

Members members_of(const std::string& cluster_id, const std::vector<record::Member>& members) {
  Members out;
  out.cluster_id = cluster_id;
  for (const record::Member& member : members) {
    if (member.standing() == record::STANDING_REMOVED) continue;
    Member& host = out.hosts.emplace_back();
    host.host_id = member.host_id();
    host.addresses = {member.addresses().begin(), member.addresses().end()};
    host.candidate = member.store().role() == record::STORE_ROLE_VOTER;
    if (host.candidate) host.store_url = member.store().client_url();
  }
  return out;
}

Result<StorePlace> store_place(const std::string& listen, const std::string& advertised) {
  const auto [address, port_text] = split_address(listen);
  const auto [host, unused] = split_address(advertised);
  std::uint16_t port = 0;
  const auto parsed = std::from_chars(port_text.data(), port_text.data() + port_text.size(), port);
  if (parsed.ec != std::errc() || port == 0 || port > 65533)
    return fail(ErrorCode::kBadInput, "[cluster] listen=" + listen +
                                          ": a port from 1 to 65533 is needed, because the "
                                          "store has the two after it");
  if (host.empty()) return fail(ErrorCode::kBadInput, "\"" + escape_text(advertised) + "\" is not HOST:PORT");
  return StorePlace{address == "*" ? "" : address, host, static_cast<std::uint16_t>(port + 1),
                    static_cast<std::uint16_t>(port + 2)};
}

Result<std::vector<std::string>> own_addresses(const MembershipOptions& options,
                                               const std::vector<std::string>& given) {
  if (given.size() > lease::kAddressesMax) return fail(ErrorCode::kBadInput, "at most 8 addresses");
  if (!given.empty()) return given;
  if (!options.advertise.empty()) return options.advertise;
  const auto [listens_at, port] = split_address(options.listen);
  const bool any = listens_at.empty() || listens_at == "*" || listens_at == "0.0.0.0" || listens_at == "::";
  const std::string address = any ? first_address() : options.listen.substr(0, options.listen.rfind(':'));
  if (address.empty())
    return fail(ErrorCode::kUnavailable,
                "this host has no address that others could reach; give one with [cluster] advertise= or --address");
  return std::vector<std::string>{address + ":" + port};
}

std::vector<std::string> hosts_in(const std::vector<std::string>& addresses) {
  std::set<std::string> hosts = {"127.0.0.1", "::1", "localhost"};  // the daemon reaches its own store member there
  for (const std::string& address : addresses) hosts.insert(split_address(address).first);
  return {hosts.begin(), hosts.end()};
}

Result<std::string> archive_own_store(const std::string& state_dir, const std::vector<std::string>& also) {
  const std::string archive = state_dir + "/archive-" + std::to_string(wall_clock_unix_s());
  std::error_code error;
  std::filesystem::create_directory(archive, error);
  if (error) return fail(ErrorCode::kInternal, "cannot make " + archive + ": " + error.message());
  std::vector<std::string> names = also;
  for (const auto& entry : std::filesystem::directory_iterator(state_dir, error)) {
    if (entry.path().filename().string().rfind("usblease.db", 0) == 0) names.push_back(entry.path().filename());
  }
  const std::filesystem::path from(state_dir);
  const std::filesystem::path to(archive);
  for (const std::string& name : names) {
    std::filesystem::rename(from / name, to / name, error);
    if (error && error != std::errc::no_such_file_or_directory)
      return fail(ErrorCode::kInternal,
                  "cannot move " + (from / name).string() + " to " + to.string() + ": " + error.message());
  }
  return archive;
}

// --- At every host ---------------------------------------------------------------------------------------

ClusterMembership::ClusterMembership(MembershipOptions options, store::Store* store, Node& node, MembershipHooks hooks)
    : options_(std::move(options)), store_(store), node_(node), hooks_(std::move(hooks)) {
  if (!options_.clustered) return;
  const auto known = load_members(directory() + "/members");
  if (known && *known) members_ = **known;
  const Member* self = members_.find(options_.host_id);
  candidate_ = self != nullptr && self->candidate;
}

ClusterMembership::~ClusterMembership() = default;

const lease::State* ClusterMembership::state() const {
  return node_.coordinator() != nullptr ? node_.coordinator()->state() : nullptr;
}

void ClusterMembership::init(std::vector<std::string> addresses, std::string principal,
                             Done<api::ClusterInitReply> done) {
  if (options_.clustered || store_ == nullptr)
    return done(fail(ErrorCode::kRefused, "this host is in the cluster " + options_.cluster_id + " already"));
  if (founding_ || joining_)
    return done(fail(ErrorCode::kUnavailable, "this host is founding or joining a cluster already"));
  auto own = own_addresses(options_, addresses);
  if (!own) return done(tl::unexpected(own.error()));
  founding_ = std::make_unique<Founding>(options_, *store_, std::move(*own), std::move(principal),
                                         [this, done](const Result<api::ClusterInitReply>& reply) {
                                           done(reply);
                                           if (reply) return hooks_.restart();
                                           post([this] { founding_.reset(); });
                                         });
  founding_->start();
}

void ClusterMembership::join(std::string token_text, Done<api::ClusterJoinReply> done) {
  if (options_.clustered)
    return done(fail(ErrorCode::kRefused, "this host is in the cluster " + options_.cluster_id +
                                              " already; once it was removed from it, stop usbleased, move " +
                                              directory() + " away, start it, and join again"));
  if (founding_ || joining_)
    return done(fail(ErrorCode::kUnavailable, "this host is founding or joining a cluster already"));
  const auto token = decode_join_token(token_text);
  if (!token) return done(tl::unexpected(token.error()));
  if (const auto good = check_join_token(*token, options_.host_id, wall_clock_unix_s()); !good)
    return done(tl::unexpected(good.error()));
  const lease::State* own = state();
  if (own == nullptr)
    return done(fail(ErrorCode::kUnavailable, "this host does not know yet what it has leased; try again"));
  for (const auto& [name, device] : own->devices) {
    if (!device.has_lease()) continue;
    return done(fail(ErrorCode::kRefused, name +
                                              " is leased here, and its lease would be lost; empty this host first: "
                                              "usblease host drain " +
                                              options_.host_id));
  }
  auto addresses = own_addresses(options_, {});
  if (!addresses) return done(tl::unexpected(addresses.error()));
  joining_ = std::make_unique<Joining>(options_, *token, std::move(*addresses),
                                       [this, done](const Result<api::ClusterJoinReply>& reply) {
                                         done(reply);
                                         if (reply) return hooks_.restart();
                                         post([this] { joining_.reset(); });
                                       });
  joining_->start();
}

void ClusterMembership::follow() {
  if (!options_.clustered) return;
  poll_ = run_after(promoting_ || settling_ ? kPromotePollNs : kPollNs, [this] { follow(); });
  if (const lease::State* known = state(); known != nullptr) {
    take_members(members_in(*known));
    promote_learners();
    keep_revocations();
    if (std::exchange(coordinated_, true)) keep_store_leader();
    return keep_store_complete();
  }
  coordinated_ = false;
  published_.reset();
  api::ClientFrame frame;
  frame.mutable_cluster_status();
  peer::Forward forward;
  forward.set_client_frame(frame.SerializeAsString());
  forward.set_caller("usbleased");
  const auto take = [this, alive = std::weak_ptr(alive_)](const std::string& bytes, bool /*more*/) {
    api::ServerFrame reply;
    if (alive.expired() || !reply.ParseFromString(bytes) || !reply.has_cluster_status()) return;
    std::vector<record::Member> members;
    for (const auto& host : reply.cluster_status().hosts()) {
      if (host.has_member()) members.push_back(host.member());
    }
    take_members(members);
  };
  (void)node_.router().forward(std::move(forward), take, [](const command::Status* /*the next poll asks again*/) {});
}

void ClusterMembership::take_members(const std::vector<record::Member>& members) {
  if (members.empty()) return;
  for (const record::Member& member : members) {
    if (member.host_id() == options_.host_id) continue;
    const bool removed = member.standing() == record::STANDING_REMOVED;
    (removed ? hooks_.forbid : hooks_.permit)(member.host_id());  // one that was removed may have joined again
  }
  Members now = members_of(options_.cluster_id, members);
  for (const record::Member& member : members) {
    if (member.host_id() == options_.host_id && obey_role(member, members)) return;
  }
  take_revocations(members);
  for (const record::Member& member : members) {
    if (member.host_id() != options_.host_id || member.standing() != record::STANDING_JOINED) continue;
    settling_ = member.rotate() || member.certificates_size() > 1;
    rotate_if_due(member);
  }
  if (now == members_) return;
  const Member* self = now.find(options_.host_id);
  if (self == nullptr) {
    if (!std::exchange(removed_, true))
      log::warning("this host was removed from its cluster: what it had is fenced, and nothing is granted to it");
    return;
  }
  removed_ = false;
  if (auto saved = save_members(directory() + "/members", now); !saved)
    return log::warning("cannot note the cluster's members", {{"ERROR", saved.error().message}});
  members_ = now;
  log::info("the cluster's members changed", {{"HOSTS", std::to_string(members_.hosts.size())}});
  // A host that may stand from now on, or no longer, begins anew: its leases stay.
  if (self->candidate != candidate_) return hooks_.restart();
  etcd_.reset();
  hooks_.members(members_);
}

// --- At the coordinator ----------------------------------------------------------------------------------

Result<store::EtcdClient*> ClusterMembership::etcd() {
  if (etcd_) return etcd_.get();
  store::EtcdOptions options;
  for (const Member& member : members_.hosts) {
    if (!member.store_url.empty()) options.endpoints.push_back(without_scheme(member.store_url));
  }
  options.ca_file = directory() + "/" + kAuthoritiesFile;
  options.cert_file = directory() + "/" + kCertificateFile;
  options.key_file = directory() + "/" + kKeyFile;
  auto opened = store::EtcdClient::open(options, post);
  if (!opened) return tl::unexpected(opened.error());
  etcd_ = std::move(*opened);
  return etcd_.get();
}

void ClusterMembership::add(std::string host_id, std::uint64_t valid_s, std::string principal,
                            Done<api::ClusterAddReply> done) {
  JoinToken token;
  token.cluster_id = options_.cluster_id;
  token.host_id = host_id;
  token.secret = new_join_secret();
  token.expires_unix_s = wall_clock_unix_s() + valid_s;
  // The coordinator, which is here, is asked first.
  for (const bool own : {true, false}) {
    for (const Member& member : members_.hosts) {
      if ((member.host_id == options_.host_id) != own) continue;
      for (const std::string& address : member.addresses) {
        if (token.addresses.size() < kJoinTokenAddressesMax) token.addresses.push_back(address);
      }
    }
  }
  if (options_.clustered) {
    const auto authorities = read_small_file(directory(), kAuthoritiesFile);
    const auto print = authorities ? fingerprint(*authorities) : tl::unexpected(authorities.error());
    if (!print) return done(tl::unexpected(print.error()));
    token.authority_fingerprint = *print;
  }
  command::Command command;
  record::JoinToken& record = *command.mutable_add_host()->mutable_token();
  record.set_id(token_id_of(token.secret));
  record.set_host_id(host_id);
  record.set_secret_sha256(hash_join_secret(token.secret));
  record.set_expires_unix_s(token.expires_unix_s);
  command.mutable_add_host()->set_principal(principal);
  node_.router().submit(std::move(command), [token, done](const command::Reply& reply) {
    if (reply.status().code() != command::CODE_OK) return done(tl::unexpected(error_of(reply.status())));
    const auto text = encode_join_token(token);
    if (!text) return done(tl::unexpected(text.error()));
    api::ClusterAddReply added;
    added.set_token(*text);
    added.set_expires_unix_s(token.expires_unix_s);
    done(added);
  });
}

// One host that joins.
struct ClusterMembership::Join {
  join::JoinRequest request;
  join::JoinReply reply;
  std::function<void(std::string)> answer;

  void fail(command::Code code, const std::string& message) {
    reply.mutable_status()->set_code(code);
    reply.mutable_status()->set_message(message);
    answer(reply.SerializeAsString());
  }
};

void ClusterMembership::answer_join(const std::string& payload, std::function<void(std::string)> answer) {
  const auto join = std::make_shared<Join>();
  join->answer = std::move(answer);
  if (!join->request.ParseFromString(payload) || join->request.addresses().empty() ||
      join->request.addresses_size() > static_cast<int>(lease::kAddressesMax))
    return join->fail(command::CODE_BAD_REQUEST, "the request to join is not well formed");
  if (state() == nullptr) {
    const Member* coordinator = members_.find(node_.router().coordinator().host_id());
    if (coordinator != nullptr && coordinator->host_id != options_.host_id) {
      for (const std::string& address : coordinator->addresses) join->reply.add_ask(address);
    }
    return join->fail(command::CODE_UNAVAILABLE, "this host is not the coordinator");
  }
  command::Command command;
  command::Join& c = *command.mutable_join();
  c.set_token_id(token_id_of(join->request.secret()));
  c.set_secret_sha256(hash_join_secret(join->request.secret()));
  c.mutable_member()->set_host_id(join->request.host_id());
  *c.mutable_member()->mutable_addresses() = join->request.addresses();
  c.mutable_member()->set_key_sha256(hash_join_secret(join->request.certificate_request()));
  node_.router().submit(std::move(command), [this, join](const command::Reply& reply) {
    if (reply.status().code() != command::CODE_OK) return join->fail(reply.status().code(), reply.status().message());
    add_store_member(join);
  });
}

// Last, so that a host which has to ask again does not get a certificate each time.
void ClusterMembership::certify(const std::shared_ptr<Join>& join) {
  const std::vector<std::string> addresses(join->request.addresses().begin(), join->request.addresses().end());
  sign(join->request.host_id(), join->request.certificate_request(), addresses,
       [this, join](const Result<std::string>& certificate) {
         if (!certificate)
           return join->fail(
               certificate.error().code == ErrorCode::kBadInput ? command::CODE_BAD_REQUEST : command::CODE_UNAVAILABLE,
               certificate.error().message);
         const auto authorities = read_small_file(directory(), kAuthoritiesFile);
         if (!authorities) return join->fail(command::CODE_UNAVAILABLE, authorities.error().message);
         join->reply.set_certificate(*certificate);
         join->reply.set_authorities(*authorities);
         if (const auto revocations = read_small_file(directory(), kRevocationsFile))
           join->reply.set_revocations(*revocations);
         finish_join(join);
       });
}

// Up to five hosts copy the store and then vote; the others are plain.
void ClusterMembership::add_store_member(const std::shared_ptr<Join>& join) {
  const lease::State* known = state();
  if (known == nullptr) return join->fail(command::CODE_UNAVAILABLE, "the coordinator has just changed");
  const auto running = std::count_if(known->members.begin(), known->members.end(), [&](const auto& entry) {
    return entry.first != join->request.host_id() && entry.second.store().role() != record::STORE_ROLE_NONE;
  });
  const auto client = etcd();
  if (join->request.store_peer_url().empty() || running >= static_cast<std::ptrdiff_t>(lease::kStoreMembersMax) ||
      !client)
    return certify(join);
  const std::string peer_url = join->request.store_peer_url();
  const auto added = [this, join, peer_url](const Result<store::EtcdMembers>& members) {
    const store::EtcdMember* own = nullptr;
    if (members) {
      for (const store::EtcdMember& member : members->members) {
        const bool is_new =
            std::find(member.peer_urls.begin(), member.peer_urls.end(), peer_url) != member.peer_urls.end();
        if (is_new) own = &member;
        join::StorePeer& peer = *join->reply.add_store_peers();
        peer.set_name(is_new ? join->request.host_id() : member.name);
        peer.set_peer_url(member.peer_urls.empty() ? "" : member.peer_urls.front());
      }
    }
    if (own == nullptr) {
      join->reply.clear_store_peers();
      return join->fail(command::CODE_UNAVAILABLE, "the store takes no new member now: " +
                                                       (members ? "it is not listed" : members.error().message));
    }
    record::StoreMember store;
    store.set_role(own->learner ? record::STORE_ROLE_LEARNER : record::STORE_ROLE_VOTER);
    store.set_member_id(own->id);
    store.set_client_url(join->request.store_client_url());
    store.set_peer_url(peer_url);
    update_store(join->request.host_id(), store, [this, join](const command::Reply& reply) {
      if (reply.status().code() != command::CODE_OK) return join->fail(reply.status().code(), reply.status().message());
      certify(join);
    });
  };
  // A repeat after a lost answer finds it there already.
  (*client)->list([client = *client, peer_url, added](const Result<store::EtcdMembers>& members) {
    const auto has = [&](const store::EtcdMember& member) {
      return std::find(member.peer_urls.begin(), member.peer_urls.end(), peer_url) != member.peer_urls.end();
    };
    if (!members || std::any_of(members->members.begin(), members->members.end(), has)) return added(members);
    client->add_learner({peer_url}, added);
  });
}

void ClusterMembership::finish_join(const std::shared_ptr<Join>& join) {
  const lease::State* known = state();
  if (known == nullptr) return join->fail(command::CODE_UNAVAILABLE, "the coordinator has just changed");
  join->reply.set_members(format_members(members_of(options_.cluster_id, members_in(*known))));
  join->reply.mutable_status()->set_code(command::CODE_OK);
  join->answer(join->reply.SerializeAsString());
  follow();
}

void ClusterMembership::update_store(const std::string& host_id, const record::StoreMember& store,
                                     std::function<void(const command::Reply&)> done) {
  command::Command command;
  command.mutable_update_member()->set_host_id(host_id);
  *command.mutable_update_member()->mutable_store() = store;
  node_.router().submit(std::move(command), std::move(done));
}

// A learner that has caught up votes from then on.
void ClusterMembership::promote_learners() {
  promoting_ = false;
  const lease::State* known = state();
  if (known == nullptr) return;
  for (const auto& [id, member] : known->members) {
    if (member.store().role() != record::STORE_ROLE_LEARNER) continue;
    promoting_ = true;
    const auto client = etcd();
    if (!client) return;
    record::StoreMember store = member.store();
    store.set_role(record::STORE_ROLE_VOTER);
    (*client)->promote(store.member_id(), [this, alive = std::weak_ptr(alive_), host_id = id,
                                           store](const Result<store::EtcdMembers>& members) {
      // Refused: it votes already, and the record does not know it yet.
      if (alive.expired() || (!members && members.error().code != ErrorCode::kRefused)) return;
      log::info("a store member votes from now on", {{"HOST", host_id}});
      update_store(host_id, store, [this, alive](const command::Reply& /*else the next poll does it again*/) {
        if (!alive.expired()) follow();
      });
    });
    return;  // one after the other
  }
}

void ClusterMembership::remove(std::string host_id, std::string principal, Done<api::ClusterRemoveReply> done) {
  const lease::State* known = state();
  if (known == nullptr) return done(fail(ErrorCode::kUnavailable, "the coordinator has just changed; try again"));
  const auto member = known->members.find(host_id);
  if (member == known->members.end() || member->second.store().role() == record::STORE_ROLE_NONE)
    return remove_from_record(host_id, principal, done);
  if (host_id == options_.host_id)
    return done(
        fail(ErrorCode::kRefused, host_id + " is the coordinator; `usblease cluster transfer` to another host first"));
  const auto client = etcd();
  if (!client) return done(tl::unexpected(client.error()));
  const auto gone = [this, host_id, principal, done] {
    update_store(host_id, record::StoreMember(), [this, host_id, principal, done](const command::Reply& reply) {
      if (reply.status().code() != command::CODE_OK) return done(tl::unexpected(error_of(reply.status())));
      remove_from_record(host_id, principal, done);
    });
  };
  // By its address: the founder's number is not in the record.
  const std::string peer_url = member->second.store().peer_url();
  (*client)->list([client = *client, peer_url, gone, done, host_id](const Result<store::EtcdMembers>& members) {
    if (!members) return done(tl::unexpected(members.error()));
    for (const store::EtcdMember& each : members->members) {
      if (std::find(each.peer_urls.begin(), each.peer_urls.end(), peer_url) == each.peer_urls.end()) continue;
      return client->remove(each.id, [gone, done, host_id](const Result<store::EtcdMembers>& left) {
        if (left || left.error().code == ErrorCode::kNotFound) return gone();
        done(fail(left.error().code, "the store does not let its member on " + host_id +
                                         " go now: " + left.error().message +
                                         "; it wants to have heard of all others for 5 s; try again"));
      });
    }
    gone();
  });
}

void ClusterMembership::remove_from_record(const std::string& host_id, const std::string& principal,
                                           const Done<api::ClusterRemoveReply>& done) {
  command::Command command;
  command.mutable_remove_host()->set_host_id(host_id);
  command.mutable_remove_host()->set_principal(principal);
  node_.router().submit(std::move(command), [this, done](const command::Reply& reply) {
    if (reply.status().code() != command::CODE_OK) return done(tl::unexpected(error_of(reply.status())));
    api::ClusterRemoveReply removed;
    removed.set_leases_left(reply.leases_left());
    done(removed);
    follow();
  });
}

void ClusterMembership::store_status(Done<std::vector<api::StoreMemberStatus>> done) {
  const lease::State* known = state();
  const auto client = options_.clustered ? etcd() : tl::unexpected(Error{ErrorCode::kNotFound, ""});
  std::vector<std::pair<std::string, std::string>> asked;  // host, endpoint
  if (known != nullptr && client) {
    for (const auto& [id, member] : known->members) {
      if (member.store().role() != record::STORE_ROLE_NONE)
        asked.emplace_back(id, without_scheme(member.store().client_url()));
    }
  }
  if (asked.empty()) return post([done] { done(std::vector<api::StoreMemberStatus>()); });
  auto collected = std::make_shared<std::vector<api::StoreMemberStatus>>(asked.size());
  auto left = std::make_shared<std::size_t>(asked.size());
  for (std::size_t i = 0; i < asked.size(); ++i) {
    (*collected)[i].set_host_id(asked[i].first);
    (*client)->status(asked[i].second, [collected, left, done, i](const Result<store::EtcdStatus>& status) {
      api::StoreMemberStatus& out = (*collected)[i];
      out.set_reachable(status.has_value());
      if (status) {
        out.set_leader(status->leader_id == status->member_id);
        out.set_learner(status->learner);
        out.set_version(status->version);
        out.set_revision(status->revision);
        out.set_size_bytes(status->db_bytes);
        if (status->corrupt) out.set_trouble("its data is corrupt");
        if (status->no_space) out.set_trouble("no space");
      } else {
        out.set_trouble(status.error().message);
      }
      if (--*left == 0) done(*collected);
    });
  }
}

}  // namespace usblease::cluster
