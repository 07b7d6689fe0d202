// Up to three usbleased of our own on loopback, each a cluster of one, until found() makes one cluster of them, each
// with its etcd, as an administrator does: init, add, join. Ends all of it and removes the directory.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "tests/bench/etcd_locks.h"
#include "tests/bench/process.h"
#include "tests/cluster/daemon_client.h"

namespace usblease::bench {

class PrivateCluster {
 public:
  static constexpr int kHostsMax = 3;

  // `parent`: where to make the directory; it decides which disk is measured. Each host is the home of
  // `devices_per_host` software devices.
  static Result<std::unique_ptr<PrivateCluster>> start(const std::string& parent, int hosts, int devices_per_host);
  ~PrivateCluster();
  PrivateCluster(const PrivateCluster&) = delete;
  PrivateCluster& operator=(const PrivateCluster&) = delete;

  Result<void> found();

  // Hosts count from 0.
  [[nodiscard]] int hosts() const { return static_cast<int>(daemons_.size()); }
  [[nodiscard]] std::string name(int host) const { return "b" + std::to_string(host + 1); }
  [[nodiscard]] std::string peer_address(int host) const;
  // A join token for a host that is to join.
  Result<std::string> invite(const std::string& host_id);
  [[nodiscard]] cluster_test::DaemonClient connect(int host) const;
  [[nodiscard]] std::string device(int host, int number) const;
  [[nodiscard]] std::string config_path(int host) const { return host_directory(host) + "/conf"; }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] EtcdAccess etcd(int host) const;

  // The host that coordinates, when the cluster is whole: every host's session was answered, every device is free.
  Result<int> wait_whole();
  void kill_daemon(int host);  // SIGKILL, and waits for its end
  Result<void> start_daemon(int host);

  // A guest on `host` that holds a device there, as libvirt's QEMU would; -1 when it cannot be started.
  pid_t start_guest(int host, const std::string& device);
  // Waits until `device` is granted.
  Result<void> wait_granted(int host, const std::string& device);

  // Of all daemons and all etcd members; the resident memory is the sum.
  [[nodiscard]] Usage daemons_usage() const;
  [[nodiscard]] Usage etcd_usage() const;

 private:
  PrivateCluster(std::string directory, int hosts, int devices_per_host)
      : directory_(std::move(directory)),
        devices_per_host_(devices_per_host),
        daemons_(static_cast<std::size_t>(hosts), -1) {}
  Result<void> start_all();
  void end();
  Result<void> join(int host);
  [[nodiscard]] std::string host_directory(int host) const;
  [[nodiscard]] std::string socket(int host) const { return host_directory(host) + "/run/usbleased.sock"; }
  [[nodiscard]] pid_t etcd_pid(int host) const;
  [[nodiscard]] Result<void> usblease(int host, const std::vector<std::string>& words) const;
  void write_config(int host) const;

  std::string directory_;
  int devices_per_host_;
  std::vector<pid_t> daemons_;  // -1: not running
  std::vector<pid_t> others_;   // devices and guests
};

}  // namespace usblease::bench
