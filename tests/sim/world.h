// A whole cluster: machines with their disks, daemons, relays, guests and devices, the network between them and the
// store. What happens in it is decided by the schedule (schedule.h) and by the product code.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "command.pb.h"
#include "common/config.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/hypervisor.h"
#include "daemon/lease/timing.h"
#include "plugin/lease-page/lease_page.h"
#include "tests/sim/device.h"
#include "tests/sim/kernel.h"
#include "tests/sim/network.h"
#include "tests/sim/store.h"

namespace usblease::sim {

class Checks;
class Daemon;
class World;

inline constexpr const char* kClusterId = "c0ffee";

// A file that is replaced durably, as daemon/host/file_writer.h does it.
struct DiskFile {
  std::optional<std::string> durable;
  std::optional<std::string> pending;  // a write that was under way: after a crash it is there or not
};

struct Guest {
  std::string name;
  std::string uuid;
  std::string host_id;  // where it runs or is to run
  int domain_id = -1;
  int pid = 0;
  Process* qemu = nullptr;  // nullptr: it does not run
  bool starting = false;
  std::set<std::string> attached;
  std::map<std::string, std::shared_ptr<GuestConnection>> connections;  // by device
};

struct HostState {
  Machine* machine = nullptr;
  Config config;
  bool candidate = false;
  bool powered = true;
  std::string machine_uuid;
  Process* daemon_process = nullptr;
  std::unique_ptr<Daemon> daemon;
  std::map<std::string, DiskFile> disk;  // by path
  std::uint64_t disk_full_permille = 0;
  Ns disk_delay_max = 5 * kMs;
  std::map<std::pair<std::string, std::uint64_t>, std::unique_ptr<RelayProcess>> relays;  // whose socket is there
  std::vector<std::unique_ptr<RelayProcess>> gone_relays;
  std::map<std::string, UsbLeaseSlot> pages;  // lease pages, by name; gone with the power
  std::set<std::string> devices;              // that are plugged in here when they are
  int next_domain_id = 1;
  std::uint64_t libvirt_started = 0;
  // Set by the running daemon's parts (seam_host.cc).
  std::function<bool(const std::string& guest_uuid, const std::string& device, int pid)> guest_socket;
  [[nodiscard]] bool up() const { return powered && daemon != nullptr; }
};

// What somebody asked for and is to be answered.
struct Asked {
  std::string what;
  std::string host_id;
  Process* by = nullptr;  // the daemon that was asked; when it dies the client sees it
  Ns answer_by = 0;
  bool answered = false;
};

struct WorldOptions {
  std::uint32_t hosts = 3;
  std::uint32_t candidates = 3;
  std::uint32_t devices = 2;
  std::uint32_t guests_per_host = 2;
  lease::Timing timing;
  std::uint32_t isolation_ms = 0;  // of the last device; 0: ttl
};

class World {
 public:
  World(Kernel& kernel, const WorldOptions& options);
  ~World();
  static World& get();

  Kernel& kernel() { return kernel_; }
  StoreEngine& store() { return store_; }
  Checks& checks() { return *checks_; }
  [[nodiscard]] const WorldOptions& options() const { return options_; }
  std::map<std::string, HostState>& hosts() { return hosts_; }
  std::map<std::string, Guest>& guests() { return guests_; }  // by name
  std::map<std::string, std::unique_ptr<Device>>& devices() { return devices_; }
  Network& network() { return network_; }
  std::set<std::string> cut_from_store;

  HostState& host(const std::string& id) { return hosts_.at(id); }
  HostState& host_of(const Process& process) { return hosts_.at(process.machine->id); }
  HostState& this_host() { return host_of(*kernel_.current()); }

  // Everything that can be done to it. Each is traced.
  void start_daemon(const std::string& host);
  void kill_daemon(const std::string& host);
  void freeze_daemon(const std::string& host);
  void thaw_daemon(const std::string& host);
  void freeze_host(const std::string& host);
  void thaw_host(const std::string& host);
  void power_off(const std::string& host);
  void power_on(const std::string& host);
  void lose_disk(const std::string& host);
  void rot_home_file(const std::string& host, std::uint64_t bit);
  void kill_relay(const std::string& device);
  void freeze_relay(const std::string& device);
  void thaw_relay(const std::string& device);
  void partition(const std::vector<std::string>& side, bool one_way, bool with_store);
  void heal();
  void plug(const std::string& device);
  void unplug(const std::string& device);

  void attach(const std::string& guest, const std::vector<std::string>& devices, std::uint32_t wait_ms,
              std::uint64_t duration_s, std::int32_t priority = 0);
  void detach(const std::string& guest, const std::string& device);
  void start_guest(const std::string& guest, const std::vector<std::string>& devices, bool required);
  void stop_guest(const std::string& guest, bool crash);
  void revoke(const std::string& device, std::uint32_t grace_ms);
  void extend(const std::string& device, std::uint64_t duration_s);
  void declare_dead(const std::string& host);
  void new_epoch();
  void transfer(const std::string& to);

  // What the seams need.
  [[nodiscard]] bool process_lives(int pid) const;
  [[nodiscard]] const Guest* guest_of_pid(int pid) const;
  Guest* guest_by_uuid(const std::string& uuid);
  void watch_process(int pid, Process* watcher, std::weak_ptr<std::function<void()>> callback);
  // A guest's QEMU connects to a guest socket of its host.
  bool connect_guest(const std::string& guest_uuid, const std::string& device);
  [[nodiscard]] std::optional<std::string> coordinator() const;  // that the store names, if it is up
  [[nodiscard]] const std::vector<std::shared_ptr<Asked>>& asked() const { return asked_; }
  // With which it was asked; 0 of a request that a hook made.
  [[nodiscard]] std::int32_t priority_of(const std::string& request_id) const;

 private:
  friend class SimHypervisor;
  void hook(const std::string& guest, const std::string& operation, const std::vector<std::string>& devices,
            bool required, Ns invoked_ns, const std::function<void(bool)>& answer);
  void qemu_starts(const std::string& guest, const std::vector<std::string>& devices, bool required, Ns invoked_ns);
  void end_daemon(HostState& host);
  std::shared_ptr<Asked> ask(const std::string& what, const std::string& host, Ns patience);
  void decide(const command::Command& command);

  Kernel& kernel_;
  WorldOptions options_;
  StoreEngine store_;
  Network network_;
  std::map<std::string, HostState> hosts_;
  std::map<std::string, Guest> guests_;
  std::map<std::string, std::unique_ptr<Device>> devices_;
  std::map<int, Process*> pids_;
  int next_pid_ = 1000;
  std::uint64_t next_request_ = 1;
  struct ExitWatcher {
    Process* watcher;
    std::weak_ptr<std::function<void()>> callback;
  };
  std::map<int, std::vector<ExitWatcher>> exit_watchers_;
  std::vector<std::shared_ptr<Asked>> asked_;
  std::map<std::string, std::int32_t> priorities_;  // by request id
  std::vector<std::unique_ptr<Daemon>> ended_daemons_;
  std::unique_ptr<Checks> checks_;
};

}  // namespace usblease::sim
