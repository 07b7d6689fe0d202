// One usbredir endpoint at its home: whether it is there, which token is armed on it, and how it is fenced. Its fence
// is confirmed only after the endpoint's own end of stream was seen.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/main_loop.h"
#include "daemon/host/device_home.h"
#include "daemon/host/endpoint.h"
#include "daemon/host/guest_sockets.h"
#include "daemon/host/qemu_witness.h"

namespace usblease::host {

class EndpointHome final : public DeviceHome {
 public:
  EndpointHome(DeviceConfig config, HomeContext& context, HomeRole role);

  void report() override;
  void on_record(const record::Device& device) override;
  void fence(std::uint64_t token) override;
  void set_deadline(std::uint64_t token, std::uint64_t deadline_ns) override;

  // The guest's QEMU connected. Takes the stream, or closes it and says why in the log.
  void on_stream(GuestStream stream);

  void on_relay_hello(const relay::Hello& hello);
  void on_relay_connected(std::uint64_t token);
  void on_relay_device(std::uint64_t token, const relay::DeviceSeen& seen);
  void on_relay_ended(std::uint64_t token, const relay::Ended& ended);
  void on_relay_fenced(std::uint64_t token);
  void on_relay_lost(std::uint64_t token);

  [[nodiscard]] bool streaming(std::uint64_t token) const { return context_.relays.has(config_.name, token); }

 private:
  void fenced_on_disk(std::uint64_t token) override;
  void describe(record::Identity& identity) const override;
  const char* noun() const override { return "the endpoint"; }
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
  void take_address();

  EndpointDevice seen_;
  std::uint64_t relay_token_ = 0;       // the relay that runs for this device, 0: none
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
};

}  // namespace usblease::host
