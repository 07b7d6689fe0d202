#include "daemon/store/etcd_endpoints.h"

#include <arpa/inet.h>
#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "common/log.h"
#include "common/text.h"
#include "daemon/store/etcd_fault.h"

namespace usblease::store {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kPemBytesMax = 1024UL * 1024;
constexpr std::size_t kHostBytesMax = 255;
constexpr std::size_t kPrefixBytesMax = 255;
constexpr int kResponseBytesMax = 64 * 1024 * 1024;  // a page of records is below 34 MB
constexpr int kReconnectMinMs = 50;
constexpr int kReconnectMaxMs = 500;
constexpr unsigned kFaultsMax = 10;
constexpr milliseconds kFaultDelay{20};
constexpr milliseconds kProbation{5'000};
constexpr std::uint32_t kTimeoutMinMs = 100;
constexpr std::uint32_t kTimeoutMaxMs = 600'000;

struct HostPort {
  std::string host;
  std::string port;
};

std::optional<HostPort> split(const std::string& endpoint) {
  const std::size_t colon = endpoint.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon > kHostBytesMax) return std::nullopt;
  HostPort parts{endpoint.substr(0, colon), endpoint.substr(colon + 1)};
  if (parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
    if (parts.host.find(':') == std::string::npos) return std::nullopt;
  } else if (parts.host.find(':') != std::string::npos) {
    return std::nullopt;
  }
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
           c == '_' || c == ':';
  };
  if (!std::all_of(parts.host.begin(), parts.host.end(), plain)) return std::nullopt;
  if (parts.port.empty() || parts.port.size() > 5) return std::nullopt;
  if (!std::all_of(parts.port.begin(), parts.port.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    return std::nullopt;
  }
  const int port = std::stoi(parts.port);
  if (port < 1 || port > 65'535) return std::nullopt;
  return parts;
}

// gRPC's name of it: an address is never looked up.
std::string target_of(const std::string& endpoint) {
  const auto parts = split(endpoint);
  in_addr v4{};
  if (inet_pton(AF_INET, parts->host.c_str(), &v4) == 1) return "ipv4:" + endpoint;
  if (parts->host.find(':') != std::string::npos) return "ipv6:" + endpoint;
  return "dns:///" + endpoint;
}

Result<std::string> read_pem(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(kPemBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  const auto size = static_cast<std::size_t>(in.gcount());
  if (size == 0) {
    return fail(ErrorCode::kUnavailable, "etcd: " + path + " cannot be read or is empty; it must be a PEM file");
  }
  if (size > kPemBytesMax) return fail(ErrorCode::kBadInput, "etcd: " + path + " is no PEM file: it is over 1 MiB");
  text.resize(size);
  return text;
}

std::shared_ptr<grpc::ChannelCredentials> credentials_of(const EtcdAccess& access) {
  if (access.ca.empty()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({access.ca, access.key, access.cert});
}

Result<void> check_bounds(const EtcdOptions& options) {
  const auto bad = [](const std::string& what) { return fail(ErrorCode::kBadInput, "etcd: " + what); };
  if (options.call_timeout_ms < kTimeoutMinMs || options.call_timeout_ms > kTimeoutMaxMs) {
    return bad("a call timeout of " + std::to_string(options.call_timeout_ms) + " ms (100 to 600000 are allowed)");
  }
  if (options.owner_ttl_ms == 0 || options.owner_ttl_ms > kTimeoutMaxMs) {
    return bad("an owner's ttl of " + std::to_string(options.owner_ttl_ms) + " ms (1 to 600000 are allowed)");
  }
  const std::string& prefix = options.key_prefix;
  const bool printable = std::all_of(prefix.begin(), prefix.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (prefix.size() > kPrefixBytesMax || !printable) {
    return bad("the key prefix \"" + escape_text(prefix) + "\" (1 to 255 printable ASCII characters are allowed)");
  }
  const bool all = !options.ca_file.empty() && !options.cert_file.empty() && !options.key_file.empty();
  const bool none = options.ca_file.empty() && options.cert_file.empty() && options.key_file.empty();
  if (!all && !none) return bad("give ca_file, cert_file and key_file, or none of them");
  return {};
}

}  // namespace

Result<void> check_etcd_endpoints(const std::vector<std::string>& endpoints) {
  if (endpoints.empty() || endpoints.size() > kEtcdEndpointsMax) {
    return fail(ErrorCode::kBadInput, "etcd: " + std::to_string(endpoints.size()) + " endpoints (1 to " +
                                          std::to_string(kEtcdEndpointsMax) + " are allowed)");
  }
  for (const std::string& endpoint : endpoints) {
    if (!split(endpoint)) {
      return fail(ErrorCode::kBadInput, "etcd: endpoint \"" + escape_text(endpoint.substr(0, kHostBytesMax)) +
                                            "\" is not HOST:PORT or [ADDRESS]:PORT");
    }
  }
  return {};
}

Result<EtcdAccess> load_etcd_access(const EtcdOptions& options) {
  if (auto checked = check_etcd_endpoints(options.endpoints); !checked) return tl::unexpected(checked.error());
  if (auto checked = check_bounds(options); !checked) return tl::unexpected(checked.error());
  EtcdAccess access{options, {}, {}, {}};
  if (options.ca_file.empty()) return access;
  for (const auto& [path, into] : {std::pair{&options.ca_file, &access.ca}, std::pair{&options.cert_file, &access.cert},
                                   std::pair{&options.key_file, &access.key}}) {
    auto text = read_pem(*path);
    if (!text) return tl::unexpected(text.error());
    *into = std::move(*text);
  }
  return access;
}

std::string etcd_version_problem(const std::string& version) {
  int major = 0;
  int minor = 0;
  if (std::sscanf(version.c_str(), "%d.%d.", &major, &minor) != 2)
    return "says that its version is \"" + version + "\", which is none of etcd's; what runs there?";
  if (major == 3 && minor >= 4) return {};
  return "runs etcd " + version + "; usblease needs 3.4 or a later 3.x: install that there";
}

EtcdStatus to_status(const etcdserverpb::StatusResponse& response) {
  EtcdStatus status;
  status.etcd_cluster_id = response.header().cluster_id();
  status.member_id = response.header().member_id();
  status.leader_id = response.leader();
  status.revision = static_cast<std::uint64_t>(response.header().revision());
  status.raft_term = response.raftterm();
  status.raft_index = response.raftindex();
  status.applied_index = response.raftappliedindex();
  status.db_bytes = static_cast<std::uint64_t>(response.dbsize());
  status.db_bytes_in_use = static_cast<std::uint64_t>(response.dbsizeinuse());
  status.version = escape_text(response.version().substr(0, 64));
  status.learner = response.islearner();
  for (const std::string& error : response.errors()) {
    status.no_space |= error.find("alarm:NOSPACE") != std::string::npos;
    status.corrupt |= error.find("alarm:CORRUPT") != std::string::npos;
  }
  return status;
}

void prepare_context(grpc::ClientContext& context, milliseconds bound, EtcdNeeds needs) {
  context.set_deadline(std::chrono::system_clock::now() + bound);
  context.set_wait_for_ready(false);
  if (needs == EtcdNeeds::kLeader) context.AddMetadata("hasleader", "true");
}

// How often members are asked how they are, and when one that says nothing counts as silent, follow from how long a
// call may take: the calls that it has must end, and others begin elsewhere, within that.
EtcdEndpoints::EtcdEndpoints(EtcdLoop& loop, EtcdAccess access, std::function<void()> changed)
    : loop_(loop),
      access_(std::move(access)),
      changed_(std::move(changed)),
      ask_every_(std::clamp(access_.options.call_timeout_ms / 20, 50U, 1000U)),
      silence_max_(std::clamp(access_.options.call_timeout_ms / 5, 100U, 2000U)),
      cluster_id_(access_.options.etcd_cluster_id) {
  credentials_ = credentials_of(access_);
}

void EtcdEndpoints::use_credentials(const EtcdAccess& access) {
  if (closed_) return;
  credentials_ = credentials_of(access);
  const std::vector<EtcdEndpointPtr> old = std::exchange(endpoints_, {});
  std::vector<std::string> addresses;
  for (const EtcdEndpointPtr& endpoint : old) {
    endpoint->next_ask.cancel();
    put_out_of_use(*endpoint, endpoint->address + " is reached anew, with a new certificate");
    addresses.push_back(endpoint->address);
  }
  set(addresses);
}

void EtcdEndpoints::start() { set(access_.options.endpoints); }

EtcdEndpointPtr EtcdEndpoints::connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kResponseBytesMax);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectMaxMs * 2);  // the bound of one attempt
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // a transaction is sent once
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // our connections are ours: they end with the store
  auto endpoint = std::make_shared<EtcdEndpoint>();
  endpoint->address = address;
  endpoint->problem = address + " has not answered yet";
  endpoint->channel = grpc::CreateCustomChannel(target_of(address), credentials_, arguments);
  endpoint->kv = etcdserverpb::KV::NewStub(endpoint->channel);
  endpoint->lease = etcdserverpb::Lease::NewStub(endpoint->channel);
  endpoint->watch = etcdserverpb::Watch::NewStub(endpoint->channel);
  endpoint->cluster = etcdserverpb::Cluster::NewStub(endpoint->channel);
  endpoint->maintenance = etcdserverpb::Maintenance::NewStub(endpoint->channel);
  return endpoint;
}

void EtcdEndpoints::set(const std::vector<std::string>& addresses) {
  if (closed_) return;
  std::vector<EtcdEndpointPtr> next;
  for (const std::string& address : addresses) {
    const auto same = [&](const EtcdEndpointPtr& endpoint) { return endpoint->address == address; };
    if (std::any_of(next.begin(), next.end(), same)) continue;
    const auto old = std::find_if(endpoints_.begin(), endpoints_.end(), same);
    next.push_back(old != endpoints_.end() ? *old : connect(address));
  }
  endpoints_.swap(next);
  for (const EtcdEndpointPtr& old : next) {
    if (known(old)) continue;
    old->next_ask.cancel();
    put_out_of_use(*old, old->address + " is not an endpoint any more");
  }
  for (const EtcdEndpointPtr& endpoint : endpoints_) {
    if (!endpoint->fit) ask(endpoint);
  }
  changed_();
}

void EtcdEndpoints::close() {
  closed_ = true;
  for (const EtcdEndpointPtr& endpoint : endpoints_) {
    endpoint->next_ask.cancel();
    put_out_of_use(*endpoint, endpoint->address + " is closed");
  }
  current_.reset();
}

bool EtcdEndpoints::known(const EtcdEndpointPtr& endpoint) const {
  return std::find(endpoints_.begin(), endpoints_.end(), endpoint) != endpoints_.end();
}

EtcdEndpointPtr EtcdEndpoints::pick() {
  // A call on a connection that is not there could be lost without a trace, or wait: only a standing one is used.
  const auto usable = [](const EtcdEndpointPtr& endpoint) {
    return endpoint->fit && !endpoint->resting && endpoint->channel->GetState(false) == GRPC_CHANNEL_READY;
  };
  const auto now = EtcdLoop::Clock::now();
  const auto best = std::find_if(endpoints_.begin(), endpoints_.end(), [&](const EtcdEndpointPtr& endpoint) {
    return usable(endpoint) && endpoint->on_probation_until <= now;
  });
  if (best != endpoints_.end()) return current_ = *best;
  if (current_ && known(current_) && usable(current_)) return current_;
  const auto found = std::find_if(endpoints_.begin(), endpoints_.end(), usable);
  return current_ = found != endpoints_.end() ? *found : nullptr;
}

EtcdEndpointPtr EtcdEndpoints::at(const std::string& address) {
  for (const EtcdEndpointPtr& endpoint : endpoints_) {
    if (endpoint->address == address) return endpoint;
  }
  return connect(address);
}

void EtcdEndpoints::doubt(const EtcdEndpointPtr& endpoint, const std::string& why) {
  if (!endpoint->fit || !known(endpoint)) return;
  endpoint->faults = std::min(endpoint->faults + 1, kFaultsMax);
  endpoint->on_probation_until = EtcdLoop::Clock::now() + kProbation;
  put_out_of_use(*endpoint, endpoint->address + ": " + why);
  ask_later(endpoint, (endpoint->faults - 1) * kFaultDelay);
  changed_();
}

void EtcdEndpoints::rest(const EtcdEndpointPtr& endpoint, bool resting) {
  endpoint->resting = resting;
  changed_();
}

void EtcdEndpoints::note_no_space() {
  for (const EtcdEndpointPtr& endpoint : endpoints_) endpoint->status.no_space = true;
  changed_();
}

bool EtcdEndpoints::no_space() const {
  return std::any_of(endpoints_.begin(), endpoints_.end(),
                     [](const EtcdEndpointPtr& endpoint) { return endpoint->answers && endpoint->status.no_space; });
}

std::string EtcdEndpoints::problem() const {
  const bool any =
      std::any_of(endpoints_.begin(), endpoints_.end(), [](const auto& endpoint) { return endpoint->fit; });
  if (!any) {
    std::string text = "etcd: no member can be used";
    const char* before = ": ";
    for (const EtcdEndpointPtr& endpoint : endpoints_) text += std::exchange(before, "; ") + endpoint->problem;
    return text;
  }
  if (no_space()) {
    return "etcd: its database has reached its quota, so nothing can be written; free some disk, then compact and "
           "defragment it and disarm the alarm (an etcd of usblease does the latter by itself)";
  }
  return {};
}

void EtcdEndpoints::ask_later(const EtcdEndpointPtr& endpoint, milliseconds delay) {
  if (closed_) return;
  endpoint->next_ask = loop_.run_after(delay, [this, endpoint] { ask(endpoint); });
}

void EtcdEndpoints::ask(const EtcdEndpointPtr& endpoint) {
  if (closed_ || !known(endpoint) || std::exchange(endpoint->asking, true)) return;
  start_unary<etcdserverpb::StatusResponse>(
      loop_, endpoint, silence_max_, EtcdNeeds::kNothing,
      [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
        return endpoint->maintenance->PrepareAsyncStatus(context, etcdserverpb::StatusRequest(), queue);
      },
      [this, endpoint](const grpc::Status& status, const etcdserverpb::StatusResponse& response) {
        endpoint->asking = false;
        if (closed_ || !known(endpoint)) return;
        // It was cut short by doubt(): that knows why.
        if (status.error_code() == grpc::CANCELLED) return ask_later(endpoint, kFaultDelay);
        answered(endpoint, status, response);
        ask_later(endpoint, ask_every_);
        changed_();
      });
}

void EtcdEndpoints::answered(const EtcdEndpointPtr& endpoint, const grpc::Status& status,
                             const etcdserverpb::StatusResponse& response) {
  endpoint->answers = status.ok();
  if (!status.ok()) {
    return put_out_of_use(*endpoint, endpoint->address + " does not answer (" + etcd_message(status) + ")");
  }
  const std::uint64_t raft_term_before = std::exchange(endpoint->status, to_status(response)).raft_term;
  // What was under way with the leader before may be lost without a word: etcd itself would say so after 7 s.
  if (raft_term_before != 0 && endpoint->status.raft_term > raft_term_before) end_calls(*endpoint);
  std::string bad = judge(endpoint->status);
  if (!bad.empty()) return put_out_of_use(*endpoint, endpoint->address + " " + bad);
  if (!std::exchange(endpoint->fit, true)) log::debug("etcd is reached", {{"PEER", endpoint->address}});
  endpoint->problem.clear();
}

// Why a member that says this is not fit; empty: it is.
std::string EtcdEndpoints::judge(const EtcdStatus& status) {
  if (auto problem = etcd_version_problem(status.version); !problem.empty()) return problem;
  if (status.corrupt) {
    return "says that the members' databases differ (alarm CORRUPT): find the damaged member with \"etcdctl endpoint "
           "hashkv\", replace it, then disarm the alarm";
  }
  if (cluster_id_ != 0 && status.etcd_cluster_id != cluster_id_) {
    return "is a member of another etcd cluster; correct the endpoints, or what runs there";
  }
  if (status.learner) return "is a member that does not vote yet";
  if (status.leader_id == 0) return "has no leader: most members are down or cut off from it; start them";
  cluster_id_ = status.etcd_cluster_id;
  return {};
}

void EtcdEndpoints::put_out_of_use(EtcdEndpoint& endpoint, std::string why) {
  if (std::exchange(endpoint.fit, false)) log::info("etcd: a member is not used", {{"ERROR", why}});
  endpoint.problem = std::move(why);
  end_calls(endpoint);
}

void EtcdEndpoints::end_calls(const EtcdEndpoint& endpoint) {
  for (grpc::ClientContext* context : endpoint.calls) context->TryCancel();
}

}  // namespace usblease::store
