// One usbleased, put together as daemon/main.cc does it, with the simulated outside.
#pragma once

#include <memory>
#include <string>

#include "daemon/cluster/node.h"
#include "daemon/host/home_file.h"
#include "daemon/host/host_agent.h"
#include "tests/sim/network.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

namespace usblease::sim {

// libvirt of one host.
class SimHypervisor final : public host::Hypervisor {
 public:
  SimHypervisor(World& world, HostState& host) : world_(world), host_(host) {}
  void start(host::HypervisorEvents events) override;
  void find_guest(std::string name_or_uuid, Done<host::Guest> done) override;
  void list_guests(Done<std::vector<host::Guest>> done) override;
  void attach_endpoint(std::string guest_uuid, std::string device, std::string socket_path, Done<void> done) override;
  void attach_usb(std::string guest_uuid, std::string device, host::UsbAddress address, Done<void> done) override;
  void detach_usb(std::string guest_uuid, host::UsbAddress address, Done<void> done) override;
  void destroy(std::string guest_uuid, Done<void> done) override;
  void detach(std::string guest_uuid, std::string device, Done<void> done) override;
  void assign(std::string guest, Assignment assignment, bool remove, Done<bool> done) override;
  [[nodiscard]] bool is_connected() const override { return true; }
  [[nodiscard]] std::string describe() const override { return "simulated"; }

  void guest_started(const Guest& guest);
  void guest_stopped(const Guest& guest);

 private:
  [[nodiscard]] host::Guest describe(const Guest& guest) const;
  [[nodiscard]] std::vector<host::Guest> all() const;
  void later(std::function<void()> call);

  World& world_;
  HostState& host_;
  host::HypervisorEvents events_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class Daemon {
 public:
  Daemon(World& world, HostState& host, Process& process);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // In its process. An error is what usbleased would print before it exits.
  Result<void> start();
  // As SIGKILL: nothing leaves it any more.
  void die();

  [[nodiscard]] Process& process() const { return process_; }
  [[nodiscard]] cluster::Coordinator* coordinator() const { return node_->coordinator(); }
  [[nodiscard]] cluster::Node& node() const { return *node_; }
  [[nodiscard]] host::HostAgent& agent() const { return *agent_; }
  [[nodiscard]] host::HomeFile& home_file() const { return *home_file_; }
  [[nodiscard]] StoreClient* store() const { return store_.get(); }
  [[nodiscard]] SimHypervisor& hypervisor() const { return *hypervisor_; }

 private:
  cluster::NodeEvents node_events();
  [[nodiscard]] cluster::Members members() const;

  World& world_;
  HostState& host_;
  Process& process_;
  std::unique_ptr<host::HomeFile> home_file_;
  std::unique_ptr<StoreClient> store_;
  std::unique_ptr<SimHypervisor> hypervisor_;
  std::unique_ptr<cluster::Node> node_;
  std::unique_ptr<SimTransport> transport_;
  std::unique_ptr<host::HostAgent> agent_;
};

}  // namespace usblease::sim
