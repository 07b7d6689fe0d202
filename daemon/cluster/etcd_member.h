// The store member of this host: an etcd that nobody has to operate. Writes its configuration, starts it, finds it
// again after a restart of ours, starts it anew when it dies, and says in one sentence what is wrong when it cannot
// run.
//
// STATE_DIR/cluster/etcd/
//   data/      etcd's own            log        its words, at most 8 MiB
//   member     who it is: cluster, name, machine, and the members it was started among; written once, before the first
//              start. On another machine it is not started: a copy would vote twice
//   process    boot id, pid and start time of the running one
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/main_loop.h"
#include "daemon/cluster/detached_process.h"

namespace usblease::cluster {

inline constexpr std::uint16_t kStoreClientPort = 7472;
inline constexpr std::uint16_t kStorePeerPort = 7473;

struct EtcdMemberOptions {
  std::string directory;           // STATE_DIR/cluster/etcd
  std::string identity_directory;  // STATE_DIR/cluster: ca.pem, host.pem, host.key
  std::string boot_id;
  std::string cluster_id;
  std::string name;            // host id
  std::string listen_address;  // an IP address; empty: all of this host
  std::string advertise_host;  // where other members reach it: a name or an address, IPv6 without brackets
  std::uint16_t client_port = kStoreClientPort;
  std::uint16_t peer_port = kStorePeerPort;
  std::uint32_t heartbeat_ms = 100;
  std::uint32_t election_ms = 1'000;
  std::string etcd_path = "/usr/bin/etcd";
  std::uint64_t memory_limit_bytes = std::uint64_t{512} * 1024 * 1024;  // a soft one, of Go's heap
};

// Who is in etcd's cluster when a member starts for the first time. Means nothing later.
struct EtcdFirstStart {
  struct Member {
    std::string name;
    std::string peer_url;
  };
  std::vector<Member> members;  // this one included; alone: it is the first
  bool existing = false;        // joins members that run already
};

enum class EtcdState : std::uint8_t {
  kStopped,
  kRunning,  // the process runs; whether it serves, its clients find out
  kWaiting,  // died or could not start: it is tried again
  kUnfit,    // only a person can help; tried again at long intervals
};

class EtcdMember {
 public:
  // `changed` is called from the main loop with each new state and why it is so.
  using Changed = std::function<void(EtcdState, const std::string& why)>;
  EtcdMember(EtcdMemberOptions options, Changed changed);
  ~EtcdMember();  // etcd itself goes on
  EtcdMember(const EtcdMember&) = delete;
  EtcdMember& operator=(const EtcdMember&) = delete;

  // Whether a store member was made in this directory.
  static bool exists(const std::string& directory);

  // Makes the directory and the file `member`. kRefused: there is one already.
  static Result<void> create(const EtcdMemberOptions& options, const EtcdFirstStart& first);

  // Finds the running one or starts it, and keeps it running. kRefused, kNotFound: it is not tried, and why.
  Result<void> start();

  // Ends it in order (SIGTERM, after 5 s SIGKILL) and keeps it ended. `stopped` is called once it is gone.
  void stop(std::function<void()> stopped);

  [[nodiscard]] EtcdState state() const { return state_; }
  [[nodiscard]] const std::string& trouble() const { return trouble_; }
  [[nodiscard]] std::optional<ProcessId> process() const;
  // "HOST:PORT" for clients on this host, and the URLs that others are told.
  [[nodiscard]] std::string local_endpoint() const;
  [[nodiscard]] std::string client_url() const;
  [[nodiscard]] std::string peer_url() const;

  // Deletes data and files of a member that runs no more, for ever.
  static Result<void> destroy(const std::string& directory);

 private:
  [[nodiscard]] std::string file(const std::string& name) const { return options_.directory + "/" + name; }
  Result<void> check_before_start() const;
  Result<void> check_port(std::uint16_t port) const;
  [[nodiscard]] std::vector<std::string> environment(const EtcdFirstStart& first) const;
  Result<void> spawn();
  bool adopt();
  void attempt();
  void ended();
  void retry(EtcdState state, const std::string& why);
  void enter(EtcdState state, const std::string& why);
  void trim_log();

  EtcdMemberOptions options_;
  Changed changed_;
  EtcdState state_ = EtcdState::kStopped;
  std::string trouble_;
  std::optional<DetachedProcess> process_;
  std::uint64_t started_ns_ = 0;
  std::uint64_t log_from_ = 0;  // where the words of the present process begin
  unsigned failures_ = 0;       // in a row
  SourceHandle retry_;
  SourceHandle kill_;
  SourceHandle trim_;
  std::function<void()> stopped_;
};

// What etcd's last words mean, for people; empty: nothing that is known.
std::string explain_etcd_log(const std::string& log, const std::string& name);

}  // namespace usblease::cluster
