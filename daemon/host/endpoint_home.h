// One usbredir endpoint at its home: whether it is there, which token is armed on it, and how it is fenced. This is
// where "the resource refuses": a token is armed only after it is in the home file, and confirmed fenced only after the
// endpoint's own end of stream was seen and the floor is in the home file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "common/main_loop.h"
#include "daemon/cluster/link.h"
#include "daemon/host/endpoint.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/home_file.h"
#include "daemon/host/lease_pages.h"
#include "daemon/host/qemu_witness.h"
#include "daemon/host/relays.h"
#include "daemon/host/session.h"

namespace usblease::host {

// What all homes of this host share. All outlive every home.
struct HomeContext {
  cluster::CoordinatorLink& link;
  HomeFile& home_file;
  Relays& relays;
  LeasePages& pages;
  Session& session;
  std::uint32_t ttl_ms;
  // The stream of this token ended, or never came to be; for whoever waits for an attach.
  std::function<void(const std::string& device, std::uint64_t token, const std::string& why)> stream_ended;
  std::function<void(const std::string& device, std::uint64_t token)> streaming;
  std::function<void(const std::string& device)> reported;  // the coordinator took a report
  std::string module_state;                                 // where install-module writes down what it did
  bool adopted = false;  // the relays of an earlier daemon are known; nothing is fenced or probed before
};

class EndpointHome {
 public:
  // Retired: the configuration does not name the device any more, but a stream to it may live. Nothing is armed or
  // reported; what was armed is fenced, at the address that the record remembers.
  enum class Role : std::uint8_t { kManaged, kRetired };
  EndpointHome(DeviceConfig config, HomeContext& context, Role role);

  // After every registration: says what is known, and finds out what is not.
  void report();

  // The device's record as last pushed by the coordinator.
  void on_record(const record::Device& device);
  // The coordinator orders it, in a renewal's answer or through on_record.
  void fence(std::uint64_t token);
  void set_deadline(std::uint64_t token, std::uint64_t deadline_ns);

  // The guest's QEMU connected. Takes the stream, or closes it and says why in the log.
  void on_stream(GuestStream stream);

  void on_relay_hello(const relay::Hello& hello);
  void on_relay_connected(std::uint64_t token);
  void on_relay_device(std::uint64_t token, const relay::DeviceSeen& seen);
  void on_relay_ended(std::uint64_t token, const relay::Ended& ended);
  void on_relay_fenced(std::uint64_t token);
  void on_relay_lost(std::uint64_t token);

  [[nodiscard]] const std::string& name() const { return config_.name; }
  [[nodiscard]] std::uint32_t isolation_ms() const;
  [[nodiscard]] bool streaming(std::uint64_t token) const { return context_.relays.has(config_.name, token); }

 private:
  enum class Known : std::uint8_t { kUnknown, kPresent, kAbsent };

  void set_known(Known known, const std::string& detail);
  void send_report();
  void probe();
  void probed(const Result<EndpointDevice>& seen);
  void schedule_probe();
  void appear();
  void try_early();
  [[nodiscard]] Result<void> may_begin(std::uint64_t token) const;
  [[nodiscard]] bool wants_qemu() const { return config_.min_rung == Rung::kQemu; }
  void look_at_qemu(GuestStream stream, std::uint64_t token);
  void looked_at_qemu(const Result<void>& enforces);
  void stop_looking(std::uint64_t through_token);
  void begin_arming(GuestStream stream, const record::Lease& lease);
  void endpoint_connected(Result<UniqueFd> endpoint);
  void armed_on_disk(const Result<void>& stored);
  void give_up_arming(const std::string& why);
  void sync_page(const record::Lease& lease);
  void disarm_session(std::uint64_t token);
  void fence_stream(std::uint64_t token);
  void want_evidence(std::uint64_t token);
  void confirm(std::uint64_t token, const std::string& how);
  void submit_confirmation(std::uint64_t token, const std::string& how);
  [[nodiscard]] const record::Lease* lease() const { return record_.has_lease() ? &record_.lease() : nullptr; }
  [[nodiscard]] bool may_stream(std::uint64_t token) const;

  void take_address();

  DeviceConfig config_;
  HomeContext& context_;
  const bool retired_;
  record::Device record_;
  record::Policy policy_;
  Known known_ = Known::kUnknown;
  std::string detail_;
  record::Instance instance_;
  EndpointDevice seen_;
  std::uint64_t relay_token_ = 0;       // the relay that runs for this device, 0: none
  std::uint64_t confirming_ = 0;        // token whose confirmation is under way
  std::uint64_t dead_through_ = 0;      // no token up to this one is armed again by this daemon
  std::uint64_t probe_generation_ = 0;  // a probe of an earlier one says nothing any more
  std::uint64_t evidence_wanted_ = 0;   // token whose relay was lost: a fresh stream's hello must prove its end
  std::string end_reason_;

  struct Arming {
    GuestStream stream;
    std::uint64_t token;
    record::Instance instance;
    UniqueFd endpoint;
  };
  std::optional<Arming> arming_;
  struct Looking {
    GuestStream stream;
    std::uint64_t token;
    std::unique_ptr<QemuWitness> witness;
  };
  std::optional<Looking> looking_;  // whether the guest's QEMU enforces the lease by itself
  std::unique_ptr<EndpointCall> connecting_;
  std::unique_ptr<EndpointCall> probing_;
  std::optional<GuestStream> early_;  // connected before its lease: the destination of a migration
  std::uint32_t probe_delay_ms_ = 0;
  SourceHandle next_probe_;
  SourceHandle report_retry_;
  SourceHandle confirm_retry_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
