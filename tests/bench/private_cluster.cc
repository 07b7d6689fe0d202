#include "tests/bench/private_cluster.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "common/boottime.h"

namespace usblease::bench {
namespace {

constexpr std::uint64_t kWaitMaxNs = 90'000'000'000;
constexpr std::uint32_t kAskMs = 5'000;
constexpr int kPort = 7671;  // of the hosts; the two above it are etcd's

std::string address(int host) { return "127.0.9." + std::to_string(host + 1); }

Result<void> wait_until(const std::string& what, const std::function<bool()>& condition) {
  const std::uint64_t give_up_ns = boottime_now_ns() + kWaitMaxNs;
  while (!condition()) {
    if (boottime_now_ns() > give_up_ns) return fail(ErrorCode::kTimedOut, "waited in vain for " + what);
    usleep(20'000);
  }
  return {};
}

}  // namespace

std::string PrivateCluster::host_directory(int host) const { return directory_ + "/" + name(host); }

std::string PrivateCluster::device(int host, int number) const { return name(host) + "-" + std::to_string(number); }

cluster_test::DaemonClient PrivateCluster::connect(int host) const { return cluster_test::DaemonClient(socket(host)); }

EtcdAccess PrivateCluster::etcd(int host) const {
  const std::string identity = host_directory(host) + "/state/cluster/";
  return {address(host) + ":" + std::to_string(kPort + 1), identity + "ca.pem", identity + "host.pem",
          identity + "host.key"};
}

void PrivateCluster::write_config(int host) const {
  const std::string directory = host_directory(host);
  std::ofstream out(config_path(host));
  out << "[daemon]\nhost_id=" << name(host) << "\nstate_dir=" << directory << "/state\nrun_dir=" << directory
      << "/run\nlibvirt_uri=none\nlibvirt_run_dir=" << directory << "/pids\nlog_level=warning\n"
      << "relay_path=" << USBLEASE_BUILD_DIR << "/daemon/relay/usblease-relay\n[cluster]\nlisten=" << address(host)
      << ":" << kPort << "\n";
  for (int number = 0; number < devices_per_host_; ++number) {
    const std::string device_name = device(host, number);
    out << "[device " << device_name << "]\nendpoint=unix:" << directory << "/" << device_name << "\n";
  }
}

Result<std::unique_ptr<PrivateCluster>> PrivateCluster::start(const std::string& parent, int hosts,
                                                              int devices_per_host) {
  std::string directory = parent + "/ub-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return fail_errno("cannot make a directory in " + parent, errno);
  std::unique_ptr<PrivateCluster> cluster(new PrivateCluster(directory, hosts, devices_per_host));
  on_interrupt([ending = cluster.get()] { ending->end(); });
  if (auto started = cluster->start_all(); !started) return tl::unexpected(started.error());
  return cluster;
}

Result<void> PrivateCluster::start_all() {
  for (int host = 0; host < hosts(); ++host) {
    std::filesystem::create_directories(host_directory(host) + "/pids");
    write_config(host);
    for (int number = 0; number < devices_per_host_; ++number) {
      const std::string path = "unix:" + host_directory(host) + "/" + device(host, number);
      const pid_t pid = spawn({std::string(USBLEASE_BUILD_DIR) + "/tests/devices/usbredir-dongle", "--listen", path,
                               "--serial", "BENCH-" + device(host, number)},
                              {}, -1, directory_ + "/devices.log");
      if (pid < 0) return fail(ErrorCode::kInternal, "cannot start tests/devices/usbredir-dongle; build it first");
      others_.push_back(pid);
    }
    if (auto started = start_daemon(host); !started) return started;
  }
  return {};
}

Result<void> PrivateCluster::found() {
  if (auto made = usblease(0, {"cluster", "init"}); !made) return made;
  for (int host = 1; host < hosts(); ++host) {
    if (auto joined = join(host); !joined) return joined;
  }
  const auto whole = wait_whole();
  return whole ? Result<void>() : tl::unexpected(whole.error());
}

Result<void> PrivateCluster::join(int host) {
  const auto token = invite(name(host));
  if (!token) return tl::unexpected(token.error());
  if (auto joined = usblease(host, {"cluster", "join", *token}); !joined) return joined;
  // One after the other: etcd takes one new member at a time.
  return wait_until(name(host) + " to vote in the store", [&] {
    api::ClientFrame frame;
    frame.mutable_cluster_status();
    const auto answer = connect(0).ask(frame, kAskMs);
    if (!answer) return false;
    int voters = 0;
    for (const auto& each : answer->cluster_status().hosts())
      voters += each.member().store().role() == record::STORE_ROLE_VOTER ? 1 : 0;
    return voters == host + 1;
  });
}

Result<std::string> PrivateCluster::invite(const std::string& host_id) {
  api::ClientFrame frame;
  frame.mutable_cluster_add()->set_host_id(host_id);
  const auto answer = connect(0).ask(frame, kAskMs);
  if (!answer) return tl::unexpected(answer.error());
  if (answer->status().code() != command::CODE_OK) return fail(ErrorCode::kInternal, answer->status().message());
  return answer->cluster_add().token();
}

std::string PrivateCluster::peer_address(int host) const { return address(host) + ":" + std::to_string(kPort); }

Result<void> PrivateCluster::usblease(int host, const std::vector<std::string>& words) const {
  std::vector<std::string> command = {std::string(USBLEASE_BUILD_DIR) + "/cli/usblease", "-c", socket(host), "--json"};
  command.insert(command.end(), words.begin(), words.end());
  return run_checked(command);
}

Result<void> PrivateCluster::start_daemon(int host) {
  const std::string directory = host_directory(host);
  const std::string program = std::string(USBLEASE_BUILD_DIR) + "/daemon/usbleased";
  const pid_t pid = spawn({program, "--config", config_path(host)}, {}, -1, directory + "/log");
  if (pid < 0) return fail(ErrorCode::kInternal, "cannot start " + program + "; build it first");
  daemons_[static_cast<std::size_t>(host)] = pid;
  api::ClientFrame frame;
  frame.mutable_host_info();
  return wait_until("usbleased of " + name(host), [&] { return connect(host).ask(frame, kAskMs).has_value(); });
}

void PrivateCluster::kill_daemon(int host) {
  pid_t& pid = daemons_[static_cast<std::size_t>(host)];
  if (pid < 0) return;
  kill(pid, SIGKILL);
  wait_for(pid);
  pid = -1;
}

Result<int> PrivateCluster::wait_whole() {
  int coordinator = -1;
  const auto is_whole = [&] {
    api::ClientFrame list, status;
    list.mutable_list_devices();
    status.mutable_status();
    for (int host = 0; host < hosts(); ++host) {
      auto client = connect(host);
      const auto said = client.ask(status, kAskMs);
      if (!said || said->status().code() != command::CODE_OK) return false;
      int answered = 0;
      for (const auto& session : said->status_reply().sessions()) answered += session.answered() && !session.gone();
      if (answered != hosts()) return false;
      const auto devices = client.ask(list, kAskMs);
      if (!devices || devices->list_devices().devices_size() != hosts() * devices_per_host_) return false;
      for (const auto& each : devices->list_devices().devices()) {
        if (each.state() != "free") return false;
      }
      for (int other = 0; other < hosts(); ++other) {
        if (name(other) == said->status_reply().coordinator()) coordinator = other;
      }
    }
    return coordinator >= 0;
  };
  if (auto whole = wait_until("all hosts, with free devices", is_whole); !whole) return tl::unexpected(whole.error());
  return coordinator;
}

pid_t PrivateCluster::start_guest(int host, const std::string& device) {
  const std::string directory = host_directory(host);
  const pid_t pid =
      spawn({std::string(USBLEASE_BUILD_DIR) + "/tests/cluster/lease-holder", "guest", "--socket", socket(host),
             "--history", directory + "/history", "--name", "bench-guest", "--run-dir", directory + "/run", "--pid-dir",
             directory + "/pids", "-uuid", "6f9619ff-8b86-4d01-b42d-00cf4fc964f0", "--device", device},
            {}, -1, directory_ + "/guests.log");
  if (pid >= 0) others_.push_back(pid);
  return pid;
}

Result<void> PrivateCluster::wait_granted(int host, const std::string& device) {
  auto client = connect(host);
  return wait_until(device + " to be granted", [&] {
    api::ClientFrame frame;
    frame.mutable_device_info()->set_device(device);
    const auto answer = client.ask(frame, kAskMs);
    return answer && answer->device_info().device().state() == "granted" &&
           answer->device_info().device().deadline_boottime_ns() != 0;
  });
}

pid_t PrivateCluster::etcd_pid(int host) const {
  std::ifstream in(host_directory(host) + "/state/cluster/etcd/process");
  std::string boot_id;
  pid_t pid = -1;
  in >> boot_id >> pid;
  return in ? pid : -1;
}

Usage PrivateCluster::daemons_usage() const {
  Usage sum;
  for (const pid_t pid : daemons_) {
    const Usage usage = usage_of(pid);
    sum.cpu_s += usage.cpu_s;
    sum.resident_bytes += usage.resident_bytes;
  }
  return sum;
}

Usage PrivateCluster::etcd_usage() const {
  Usage sum;
  for (int host = 0; host < hosts(); ++host) {
    const Usage usage = usage_of(etcd_pid(host));
    sum.cpu_s += usage.cpu_s;
    sum.resident_bytes += usage.resident_bytes;
  }
  return sum;
}

PrivateCluster::~PrivateCluster() { end(); }

void PrivateCluster::end() {
  for (int host = 0; host < hosts(); ++host) {
    kill_daemon(host);
    // The store member outlives its daemon: that is its point.
    const pid_t pid = etcd_pid(host);
    if (pid > 1) kill(pid, SIGKILL);
    for (int look = 0; pid > 1 && look < 100 && kill(pid, 0) == 0; ++look) usleep(20'000);
  }
  for (const pid_t pid : others_) {
    kill(pid, SIGKILL);
    wait_for(pid);
  }
  std::error_code ignored;
  if (std::getenv("USBLEASE_BENCH_KEEP") == nullptr) std::filesystem::remove_all(directory_, ignored);
}

}  // namespace usblease::bench
