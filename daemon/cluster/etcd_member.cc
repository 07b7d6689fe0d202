#include "daemon/cluster/etcd_member.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <glib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/boottime.h"
#include "common/fd.h"
#include "common/glib_ptr.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "daemon/cluster/identity.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kRetryLeastNs = 200 * kNsPerMs;
constexpr std::uint64_t kRetryMostNs = 10'000 * kNsPerMs;
constexpr std::uint64_t kUnfitRetryNs = 60'000 * kNsPerMs;
constexpr std::uint64_t kStableNs = 30'000 * kNsPerMs;  // after that long, a death is the first one again
constexpr std::uint64_t kStopNs = 5'000 * kNsPerMs;
constexpr std::uint64_t kTrimNs = 60'000 * kNsPerMs;
constexpr off_t kLogBytesMax = off_t{8} * 1024 * 1024;
constexpr std::size_t kLogTailBytes = 16'384;
constexpr std::uint64_t kCorruptCheckNs = 600'000 * kNsPerMs;

// One decision about every device of a host is one transaction (store.h, kTxnOpsMax), of records of at most 64 KiB that
// are mostly below 1 KiB.
constexpr std::uint64_t kTxnOps = 16'384;
constexpr std::uint64_t kRequestBytes = std::uint64_t{32} * 1024 * 1024;
// The state is at most some ten MB; the rest is room for history between two compactions.
constexpr std::uint64_t kQuotaBytes = std::uint64_t{2} * 1024 * 1024 * 1024;

constexpr const char* kMemberFile = "member";
constexpr const char* kProcessFile = "process";
constexpr const char* kLogFile = "log";
constexpr const char* kGroup = "member";

std::string url(const std::string& host, std::uint16_t port) {
  const bool ipv6 = host.find(':') != std::string::npos;
  return "https://" + (ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// The file `member`, as a key file.
struct MemberFile {
  std::string cluster_id;
  std::string name;
  std::string machine;  // machine_uuid(); empty: made before this was noted
  EtcdFirstStart first;
};

std::string key_of(GKeyFile* file, const char* key) {
  const GChars value(g_key_file_get_string(file, kGroup, key, nullptr));
  return value != nullptr ? value.get() : "";
}

Result<MemberFile> load_member_file(const std::string& path) {
  const GPtr<GKeyFile, g_key_file_unref> file(g_key_file_new());
  GErrorOut error;
  if (g_key_file_load_from_file(file.get(), path.c_str(), G_KEY_FILE_NONE, error.out()) == FALSE)
    return fail(ErrorCode::kBadInput, "cannot read " + path + ": " + error.message());
  MemberFile out;
  out.cluster_id = key_of(file.get(), "cluster");
  out.name = key_of(file.get(), "name");
  out.machine = key_of(file.get(), "machine");
  out.first.existing = key_of(file.get(), "existing") == "true";
  gsize count = 0;
  char** names = g_key_file_get_keys(file.get(), "members", &count, nullptr);
  for (gsize i = 0; i < count; ++i) {
    const GChars peer(g_key_file_get_string(file.get(), "members", names[i], nullptr));
    out.first.members.push_back({names[i], peer != nullptr ? peer.get() : ""});
  }
  g_strfreev(names);
  if (out.cluster_id.empty() || out.name.empty() || out.first.members.empty())
    return fail(ErrorCode::kBadInput, path + " is damaged; `usblease cluster remove` this host and let it join again");
  return out;
}

std::string format_member_file(const EtcdMemberOptions& options, const EtcdFirstStart& first) {
  std::string text = "[member]\ncluster=" + options.cluster_id + "\nname=" + options.name +
                     "\nmachine=" + machine_uuid() + "\nexisting=" + (first.existing ? "true" : "false") +
                     "\n[members]\n";
  for (const auto& member : first.members) text += member.name + "=" + member.peer_url + "\n";
  return text;
}

std::string read_from(const std::string& path, std::uint64_t offset) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) return "";
  const auto size = static_cast<std::uint64_t>(info.st_size);
  const std::uint64_t begin = std::max(offset <= size ? offset : 0, size > kLogTailBytes ? size - kLogTailBytes : 0);
  std::string out(kLogTailBytes, '\0');
  const ssize_t count = pread(fd.get(), out.data(), out.size(), static_cast<off_t>(begin));
  out.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return out;
}

bool is_free(std::uint16_t port, const std::string& address) {
  const bool ipv6 = address.find(':') != std::string::npos;
  const UniqueFd fd(socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return true;  // etcd will say what is wrong
  const int on = 1;
  (void)setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (ipv6) {
    sockaddr_in6 place{};
    place.sin6_family = AF_INET6;
    place.sin6_port = htons(port);
    if (inet_pton(AF_INET6, address.c_str(), &place.sin6_addr) != 1) return true;
    return bind(fd.get(), reinterpret_cast<const sockaddr*>(&place), sizeof place) == 0 || errno != EADDRINUSE;
  }
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_port = htons(port);
  if (!address.empty() && inet_pton(AF_INET, address.c_str(), &place.sin_addr) != 1) return true;
  return bind(fd.get(), reinterpret_cast<const sockaddr*>(&place), sizeof place) == 0 || errno != EADDRINUSE;
}

// Without the file etcd accepts nobody. Until the cluster's list comes, one that names nobody stands there.
Result<void> have_revocations(const std::string& directory) {
  if (access((directory + "/" + kRevocationsFile).c_str(), F_OK) == 0) return {};
  auto certificate = read_small_file(directory, kCertificateFile);
  auto key = read_small_file(directory, kKeyFile);
  if (!certificate) return tl::unexpected(certificate.error());
  if (!key) return tl::unexpected(key.error());
  const auto list = make_revocations({std::move(*certificate), std::move(*key)}, {});
  if (!list) return tl::unexpected(list.error());
  return write_durably(directory, kRevocationsFile, *list, 0644);
}

struct Meaning {
  const char* word;
  const char* meaning;
  bool unfit;
};

// What etcd 3.4 and 3.5 write before they end by themselves.
constexpr std::array kMeanings = {
    Meaning{"address already in use", "a port of the store member is taken by another program", false},
    Meaning{"no space left on device", "the disk is full", false},
    Meaning{"permission denied", "it may not read its own files", true},
    Meaning{"has been permanently removed", "it was removed from the store's members", true},
    Meaning{"member has already been bootstrapped", "its data is gone, but the other members know it still", true},
    Meaning{"cluster ID mismatch", "its data or its peers belong to another cluster", true},
    Meaning{"member count is unequal", "the other members do not know it", true},
    Meaning{"error validating peerURLs", "the other members do not know it under its address", true},
    Meaning{"found data inconsistency", "its data is corrupt", true},
    Meaning{"data inconsistency with peers", "its data is corrupt", true},
    Meaning{"wal: ", "its data is corrupt", true},
    Meaning{"checksum", "its data is corrupt", true},
    Meaning{"crc mismatch", "its data is corrupt", true},
    Meaning{"failed to recover", "its data is corrupt", true},
    Meaning{"panic: ", "its data is corrupt, or etcd has a fault", true},
    Meaning{"tls: ", "its certificate is not accepted", false},
};

const Meaning* meaning_of(const std::string& log) {
  const auto* found = std::find_if(kMeanings.begin(), kMeanings.end(),
                                   [&](const Meaning& m) { return log.find(m.word) != std::string::npos; });
  return found == kMeanings.end() ? nullptr : found;
}

}  // namespace

std::string explain_etcd_log(const std::string& log, const std::string& name) {
  const Meaning* meaning = meaning_of(log);
  if (meaning == nullptr) return "";
  std::string out = std::string("the store member of ") + name + " cannot run: " + meaning->meaning;
  if (meaning->unfit)
    out += "; take it away with `usblease cluster remove " + name + "` on another host, then let it join again";
  return out;
}

EtcdMember::EtcdMember(EtcdMemberOptions options, Changed changed)
    : options_(std::move(options)), changed_(std::move(changed)) {}

EtcdMember::~EtcdMember() = default;

bool EtcdMember::exists(const std::string& directory) {
  return access((directory + "/" + kMemberFile).c_str(), F_OK) == 0;
}

Result<void> EtcdMember::create(const EtcdMemberOptions& options, const EtcdFirstStart& first) {
  if (exists(options.directory)) return fail(ErrorCode::kRefused, options.directory + " holds a store member already");
  if (g_mkdir_with_parents(options.directory.c_str(), 0700) != 0)
    return fail_errno("cannot make " + options.directory, errno);
  return write_durably(options.directory, kMemberFile, format_member_file(options, first), 0600);
}

Result<void> EtcdMember::destroy(const std::string& directory) {
  std::error_code error;
  std::filesystem::remove_all(directory, error);
  if (error) return fail(ErrorCode::kInternal, "cannot remove " + directory + ": " + error.message());
  return {};
}

std::string EtcdMember::local_endpoint() const {
  const bool any = options_.listen_address.empty() || options_.listen_address == "0.0.0.0";
  const std::string address = url(any ? "127.0.0.1" : options_.listen_address, options_.client_port);
  return address.substr(address.find("//") + 2);
}

std::string EtcdMember::client_url() const { return url(options_.advertise_host, options_.client_port); }
std::string EtcdMember::peer_url() const { return url(options_.advertise_host, options_.peer_port); }

std::optional<ProcessId> EtcdMember::process() const { return process_ ? std::optional(process_->id()) : std::nullopt; }

Result<void> EtcdMember::start() {
  const auto member = load_member_file(file(kMemberFile));
  if (!member) return tl::unexpected(member.error());
  if (member->cluster_id != options_.cluster_id || member->name != options_.name) {
    return fail(ErrorCode::kRefused, options_.directory + " holds the store member " + member->name +
                                         " of the cluster " + member->cluster_id + ", but this is " + options_.name +
                                         " of " + options_.cluster_id +
                                         "; move that directory away if it is not needed");
  }
  const std::string machine = machine_uuid();
  if (!member->machine.empty() && !machine.empty() && member->machine != machine) {
    return fail(ErrorCode::kRefused,
                "the store member in " + options_.directory + " was made on another machine (" + member->machine +
                    ", this one is " + machine +
                    "), and a copy of it would vote twice. A cloned image: give it a host_id= of its own, move " +
                    options_.identity_directory +
                    " away, and let it join. A machine whose hardware was replaced, so "
                    "that the other one never runs again: remove the line machine= from " +
                    file(kMemberFile));
  }
  if (access(options_.etcd_path.c_str(), X_OK) != 0) {
    return fail(ErrorCode::kNotFound,
                options_.etcd_path +
                    " cannot be executed: install etcd-server (3.4 or 3.5); until then this host has no "
                    "store member");
  }
  trim_log();
  if (!adopt()) attempt();
  return {};
}

// The one that an earlier usbleased of this boot started.
bool EtcdMember::adopt() {
  const auto id = load_process_id(file(kProcessFile), options_.boot_id);
  if (!id) return false;
  auto process = DetachedProcess::open(*id, options_.etcd_path);
  if (!process) return false;
  process_.emplace(std::move(*process));
  process_->watch([this] { ended(); });
  started_ns_ = boottime_now_ns();
  log::info("the store member runs already", {{"PID", std::to_string(id->pid)}});
  enter(EtcdState::kRunning, "");
  return true;
}

void EtcdMember::attempt() {
  auto fit = check_before_start();
  if (fit) fit = spawn();
  if (!fit)
    return retry(fit.error().code == ErrorCode::kRefused ? EtcdState::kUnfit : EtcdState::kWaiting,
                 fit.error().message);
  enter(EtcdState::kRunning, "");
}

Result<void> EtcdMember::check_port(std::uint16_t port) const {
  if (is_free(port, options_.listen_address)) return {};
  return fail(
      ErrorCode::kUnavailable,
      "port " + std::to_string(port) +
          " of the store member is taken by another program; end that, or move usbleased with [cluster] listen= "
          "before this host joins: the store has the two ports after that one");
}

Result<void> EtcdMember::check_before_start() const {
  for (const char* name : {kAuthoritiesFile, kCertificateFile, kKeyFile}) {
    const std::string path = options_.identity_directory + "/" + name;
    if (access(path.c_str(), R_OK) != 0) return fail_errno("the store member needs " + path, errno);
  }
  if (auto list = have_revocations(options_.identity_directory); !list) return list;
  if (auto client = check_port(options_.client_port); !client) return client;
  return check_port(options_.peer_port);
}

std::vector<std::string> EtcdMember::environment(const EtcdFirstStart& first) const {
  const std::string listen = options_.listen_address.empty() ? "0.0.0.0" : options_.listen_address;
  const std::string authorities = options_.identity_directory + "/" + kAuthoritiesFile;
  const std::string certificate = options_.identity_directory + "/" + kCertificateFile;
  const std::string key = options_.identity_directory + "/" + kKeyFile;
  const std::string revocations = options_.identity_directory + "/" + kRevocationsFile;
  std::string members;
  for (const auto& member : first.members)
    members += (members.empty() ? "" : ",") + member.name + "=" + member.peer_url;
  const auto number = [](std::uint64_t value) { return std::to_string(value); };
  return {
      "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
      // Go gives memory back before it grows past this; it is no hard bound.
      "GOMEMLIMIT=" + number(options_.memory_limit_bytes),
      "ETCD_NAME=" + options_.name,
      "ETCD_DATA_DIR=" + file("data"),
      "ETCD_LISTEN_CLIENT_URLS=" + url(listen, options_.client_port),
      "ETCD_ADVERTISE_CLIENT_URLS=" + client_url(),
      "ETCD_LISTEN_PEER_URLS=" + url(listen, options_.peer_port),
      "ETCD_INITIAL_ADVERTISE_PEER_URLS=" + peer_url(),
      "ETCD_INITIAL_CLUSTER=" + members,
      "ETCD_INITIAL_CLUSTER_STATE=" + std::string(first.existing ? "existing" : "new"),
      "ETCD_INITIAL_CLUSTER_TOKEN=usblease-" + options_.cluster_id,
      "ETCD_HEARTBEAT_INTERVAL=" + number(options_.heartbeat_ms),
      "ETCD_ELECTION_TIMEOUT=" + number(options_.election_ms),
      "ETCD_PRE_VOTE=true",  // a member that was cut off does not end the others' term when it comes back
      "ETCD_MAX_TXN_OPS=" + number(kTxnOps),
      "ETCD_MAX_REQUEST_BYTES=" + number(kRequestBytes),
      "ETCD_QUOTA_BACKEND_BYTES=" + number(kQuotaBytes),
      "ETCD_AUTO_COMPACTION_RETENTION=0",  // the store compacts (daemon/store/etcd_upkeep.cc)
      "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK=true",
      "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME=" + number(kCorruptCheckNs / 1'000'000'000) + "s",
      "ETCD_CERT_FILE=" + certificate,
      "ETCD_KEY_FILE=" + key,
      "ETCD_TRUSTED_CA_FILE=" + authorities,
      "ETCD_CLIENT_CERT_AUTH=true",
      "ETCD_PEER_CERT_FILE=" + certificate,
      "ETCD_PEER_KEY_FILE=" + key,
      "ETCD_PEER_TRUSTED_CA_FILE=" + authorities,
      "ETCD_PEER_CLIENT_CERT_AUTH=true",
      // Read at each handshake.
      "ETCD_CLIENT_CRL_FILE=" + revocations,
      "ETCD_PEER_CRL_FILE=" + revocations,
      // Hosts may send from an address that their certificate does not name; the CA signs for hosts of ours only.
      "ETCD_EXPERIMENTAL_PEER_SKIP_CLIENT_SAN_VERIFICATION=true",
      "ETCD_LOGGER=zap",
      "ETCD_LOG_OUTPUTS=stderr",
      "ETCD_LOG_LEVEL=warn",
  };
}

Result<void> EtcdMember::spawn() {
  const auto member = load_member_file(file(kMemberFile));
  if (!member) return tl::unexpected(member.error());
  if (mkdir(file("data").c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno("cannot make " + file("data"), errno);
  trim_log();
  struct stat info {};
  log_from_ = stat(file(kLogFile).c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.st_size) : 0;
  const auto id = start_detached({options_.etcd_path, {}, environment(member->first), file(kLogFile)});
  if (!id) return tl::unexpected(id.error());
  if (auto saved = save_process_id(file(kProcessFile), options_.boot_id, *id); !saved)
    log::warning("a restart of usbleased will not find its store member", {{"ERROR", saved.error().message}});
  started_ns_ = boottime_now_ns();
  auto process = DetachedProcess::open(*id, options_.etcd_path);
  if (!process) return fail(ErrorCode::kUnavailable, "etcd ended at once: " + process.error().message);
  process_.emplace(std::move(*process));
  process_->watch([this] { ended(); });
  log::info("the store member was started", {{"PID", std::to_string(id->pid)}});
  return {};
}

void EtcdMember::ended() {
  process_.reset();
  kill_.cancel();
  unlink(file(kProcessFile).c_str());
  if (stopped_) {
    enter(EtcdState::kStopped, "");
    return std::exchange(stopped_, nullptr)();
  }
  if (boottime_now_ns() - started_ns_ > kStableNs) failures_ = 0;
  const std::string words = read_from(file(kLogFile), log_from_);
  const std::string known = explain_etcd_log(words, options_.name);
  const Meaning* meaning = meaning_of(words);
  retry(meaning != nullptr && meaning->unfit ? EtcdState::kUnfit : EtcdState::kWaiting,
        !known.empty() ? known : "the store member of " + options_.name + " ended; see " + file(kLogFile));
}

void EtcdMember::retry(EtcdState state, const std::string& why) {
  const std::uint64_t delay_ns =
      state == EtcdState::kUnfit ? kUnfitRetryNs : std::min(kRetryMostNs, kRetryLeastNs << std::min(failures_, 10U));
  ++failures_;
  retry_ = run_after(delay_ns, [this] { attempt(); });
  enter(state, why);
}

void EtcdMember::enter(EtcdState state, const std::string& why) {
  const bool news = state != state_ || why != trouble_;
  state_ = state;
  trouble_ = why;
  if (!news) return;
  if (!why.empty()) log::warning("store member", {{"ERROR", why}});
  if (changed_) changed_(state, why);
}

void EtcdMember::stop(std::function<void()> stopped) {
  retry_.cancel();
  stopped_ = std::move(stopped);
  if (!process_ && !adopt()) {
    enter(EtcdState::kStopped, "");
    return post([call = std::exchange(stopped_, nullptr)] { call(); });
  }
  if (auto sent = process_->signal(SIGTERM); !sent)
    log::warning("cannot end the store member", {{"ERROR", sent.error().message}});
  kill_ = run_after(kStopNs, [this] {
    if (process_) (void)process_->signal(SIGKILL);
  });
}

// etcd appends, so what is cut off here leaves no hole.
void EtcdMember::trim_log() {
  struct stat info {};
  const std::string path = file(kLogFile);
  if (stat(path.c_str(), &info) == 0 && info.st_size > kLogBytesMax && truncate(path.c_str(), 0) == 0) log_from_ = 0;
  trim_ = run_after(kTrimNs, [this] { trim_log(); });
}

}  // namespace usblease::cluster
