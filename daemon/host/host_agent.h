// This host: its devices, its guests, its relays and its session, wired together. Everything that a person, the hook or
// libvirt wants of this host goes through here; everything that concerns the cluster goes on to the coordinator.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "api.pb.h"
#include "common/config.h"
#include "daemon/cluster/link.h"
#include "daemon/host/acquisitions.h"
#include "daemon/host/attachments.h"
#include "daemon/host/endpoint_home.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/home_file.h"
#include "daemon/host/hook_calls.h"
#include "daemon/host/hypervisor.h"
#include "daemon/host/lease_pages.h"
#include "daemon/host/locks.h"
#include "daemon/host/relays.h"
#include "daemon/host/session.h"
#include "daemon/host/starts.h"
#include "daemon/host/usb_bus.h"
#include "daemon/host/usb_gate.h"
#include "daemon/host/usb_home.h"
#include "daemon/host/usb_refusals.h"

namespace usblease::host {

class HostAgent {
 public:
  // `gate` outlives it; null: this host's own bus is not served, and the configuration names no device on it.
  HostAgent(const Config& config, const record::Host& self, cluster::CoordinatorLink& link, Hypervisor& hypervisor,
            HomeFile& home_file, const RelayOptions& relays, UsbGate* gate = nullptr,
            std::string module_state = kModuleStateDir);

  // Adopts the relays of an earlier daemon first, so that nothing is taken for lost that lives.
  void start();

  // What the host's own bus has of a device with usb= in the configuration.
  void on_usb(const std::string& device, const UsbSighting& sighting);

  // Calls `ready` once: when this host is registered and the record has each of its devices. Null: no longer.
  void when_ready(std::function<void()> ready);

  // What this host can enforce is another now: the coordinator is told.
  void set_rungs(const std::vector<record::Rung>& rungs) { session_.set_rungs(rungs); }
  // Of the lease pages, see LeasePages::trouble(); `changed` is called when it is another one.
  [[nodiscard]] const std::string& page_trouble() const { return pages_.trouble(); }
  void when_page_trouble_changes(std::function<void()> changed) { page_trouble_changed_ = std::move(changed); }

  // From the coordinator.
  void coordinator_active();
  void on_view(const peer::HostView& view);
  void on_settled(const std::string& request_id, const command::Reply& reply) {
    acquisitions_.settled(request_id, reply);
  }

  template <typename T>
  using Done = std::function<void(Result<T>)>;

  // Queue, lease, attach, in one. `waiting` is called while it is queued. The request id names it for abandon_attach().
  void attach(const api::Attach& request, const std::string& principal,
              std::function<void(const command::Reply&)> waiting, Done<command::Reply> done);
  // The client went away before its answer: wherever the attach is by now, the lease goes back.
  void abandon_attach(const std::string& request_id);
  // Gives back what this guest holds; done when the device is free, with the token.
  void detach(const std::string& guest, const std::string& device, const std::string& principal,
              const Done<std::uint64_t>& done);

  Acquisitions& acquisitions() { return acquisitions_; }
  Locks& locks() { return locks_; }
  HookCalls& hook_calls() { return hook_calls_; }
  Hypervisor& hypervisor() { return hypervisor_; }
  [[nodiscard]] const record::Host& self() const { return session_.self(); }
  // 0: not armed here.
  [[nodiscard]] std::uint64_t deadline_ns(const std::string& device, std::uint64_t token) const {
    return session_.deadline({device, token});
  }
  [[nodiscard]] std::size_t relays() const { return relays_.count(); }
  [[nodiscard]] std::uint32_t isolation_ms(const std::string& device) const;
  // The leases of one start of a guest of this host, as last pushed. No `devices`: all of them.
  [[nodiscard]] std::vector<lease::DeviceToken> held_by(const record::Start& start,
                                                        const std::set<std::string>& devices) const;
  // Calls `done` when the device's lease has another token than this one, or none; at most 15 s.
  void when_free(const std::string& device, std::uint64_t token, std::function<void(bool free)> done);

 private:
  void on_device(const record::Device& device);
  void tell_free_waiters(const record::Device& device);
  void forget_unnamed(const peer::HostView& view);
  void close_pages_without_lease();
  void sync_sockets(const record::Device& device);
  void sync_reservation(const record::Request& request);
  void end_reservation(const std::string& request_id);
  void release(const record::Start& start, const std::vector<std::string>& devices, const std::string& why,
               const std::string& principal);
  void attach_granted(const command::Acquire& request, const command::Reply& reply, const Done<command::Reply>& answer);
  void give_back(const command::Command& command);
  // As Hypervisor::find_guest, but a libvirt that is just coming up is waited for, until give_up_ns.
  void find_guest(const std::string& guest, std::uint64_t give_up_ns, Done<Guest> done);
  void reconcile_guests();
  void adopt_requests(const peer::HostView& view);
  void on_stream(GuestStream stream);
  void on_registered();
  void forget_if_over(const record::Device& device);
  void on_reported(const std::string& device);
  void tell_ready();
  DeviceHome* home_of(const std::string& device);
  // Also of what the configuration does not name: somebody must fence it.
  DeviceHome& home_or_retired(const std::string& device);
  EndpointHome& endpoint_or_retired(const std::string& device);
  bool open_usb(const std::string& device, const record::Lease& lease, const GuestStart& start,
                std::function<void(Result<UsbAddress>)> opened);
  void hand_to_process(const GuestStart& start);
  void keep_for_start(const record::Device& device);
  [[nodiscard]] bool is_opened_by_xml(const record::Lease& lease) const;
  void before_start(const record::Start& start, const std::function<void(Result<void>)>& ready);
  [[nodiscard]] bool usb_in_use(const std::string& device) const;
  [[nodiscard]] std::map<std::string, UsbRefusals::Calm> calm_devices() const;
  void give_up_usb(const record::Lease& lease, const UsbPlace& place);
  void destroy_holder(const record::Lease& lease);
  void ask_again(const record::Device& device);
  [[nodiscard]] bool names(const std::string& device) const;
  RelayEvents relay_events();
  SessionEvents session_events();
  HypervisorEvents hypervisor_events();

  const Config& config_;
  cluster::CoordinatorLink& link_;
  Hypervisor& hypervisor_;
  Session session_;
  Relays relays_;
  LeasePages pages_;
  Starts starts_;
  GuestSockets sockets_;
  Attachments attachments_;
  Acquisitions acquisitions_;
  Locks locks_;
  HookCalls hook_calls_;
  HomeContext home_context_;
  UsbGate* gate_;
  UsbHooks usb_hooks_;
  std::map<std::string, std::unique_ptr<EndpointHome>> endpoints_;  // by device; it has one home here, of a kind
  std::map<std::string, std::unique_ptr<UsbHome>> usb_homes_;
  std::optional<UsbRefusals> refusals_;
  std::map<std::string, record::Lease> unplugged_;            // leases that stood when it went, by device
  std::set<std::pair<std::string, std::uint64_t>> given_up_;  // start's nonce, token: QEMU has it no more
  std::map<std::string, std::uint64_t> kept_;                 // device → token that is open for its start
  std::map<std::string, record::Device> devices_;             // as last pushed
  std::map<std::string, std::pair<std::string, std::string>> sockets_of_;  // leased device → guest UUID, device
  std::map<std::string, record::Request> reserved_;                        // reservations, by request id
  struct FreeWaiter {
    std::string device;
    std::uint64_t token;
    std::function<void(bool)> done;
    SourceHandle timeout;
  };
  // Attaches whose client waits, by request id; what was asked for, once that was granted.
  std::map<std::string, std::optional<command::Acquire>> attaching_;
  std::map<std::uint64_t, FreeWaiter> free_waiters_;
  std::uint64_t next_waiter_ = 1;
  std::optional<std::vector<Guest>> guests_;  // as libvirt listed them, not looked at yet
  std::function<void()> ready_;
  std::function<void()> page_trouble_changed_;
  std::set<std::string> unreported_;  // configured, and not in the record yet
  bool views_known_ = false;
  bool adopted_ = false;
  bool coordinator_active_ = false;
  std::map<std::uint64_t, SourceHandle> finding_;
  std::uint64_t next_finding_ = 1;
  std::vector<command::Command> unreturned_;
  SourceHandle give_back_retry_;
  SourceHandle orphan_check_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
