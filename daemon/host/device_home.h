// One device at its home: what the coordinator and the home file are told of it, whatever kind it is. How it is found,
// armed and fenced is decided by its kind: endpoint_home.h, usb_home.h. This is where "the resource refuses": a token
// is armed only after it is in the home file, and confirmed fenced only after its floor is there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/config.h"
#include "common/main_loop.h"
#include "daemon/cluster/link.h"
#include "daemon/host/home_file.h"
#include "daemon/host/lease_pages.h"
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

// Retired: the configuration does not name the device any more, but what was armed may live. Nothing is armed or
// reported; what was armed is fenced, where the record or the home file remembers it.
enum class HomeRole : std::uint8_t { kManaged, kRetired };

class DeviceHome {
 public:
  DeviceHome(DeviceConfig config, HomeContext& context, HomeRole role);
  DeviceHome(const DeviceHome&) = delete;
  DeviceHome& operator=(const DeviceHome&) = delete;
  virtual ~DeviceHome() = default;

  // After every registration: says what is known, and finds out what is not.
  virtual void report() = 0;
  // The device's record as last pushed by the coordinator.
  virtual void on_record(const record::Device& device) = 0;
  // The coordinator orders it, in a renewal's answer or through on_record.
  virtual void fence(std::uint64_t token) = 0;
  virtual void set_deadline(std::uint64_t token, std::uint64_t deadline_ns) = 0;

  [[nodiscard]] const std::string& name() const { return config_.name; }
  [[nodiscard]] std::uint32_t isolation_ms() const;

 protected:
  enum class Known : std::uint8_t { kUnknown, kPresent, kAbsent };
  static constexpr std::uint64_t kConfirmRetryNs = 500'000'000;

  // An instance of this boot, as the home file or somebody else who knows has it.
  void adopt_instance(std::uint64_t counter);
  void set_known(Known known, const std::string& detail);
  void send_report();
  void confirm(std::uint64_t token, const std::string& how);
  void submit_confirmation(std::uint64_t token, const std::string& how);
  // Its floor is on disk: nobody needs what was kept to prove its end.
  virtual void fenced_on_disk(std::uint64_t token) = 0;
  virtual void describe(record::Identity& identity) const = 0;
  virtual const char* noun() const = 0;  // for the log: "the endpoint"
  [[nodiscard]] const record::Lease* lease() const { return record_.has_lease() ? &record_.lease() : nullptr; }
  // The lease of this token stands, for the instance that is here now.
  [[nodiscard]] bool stands(std::uint64_t token) const;

  DeviceConfig config_;
  HomeContext& context_;
  const bool retired_;
  record::Device record_;
  Known known_ = Known::kUnknown;
  std::string detail_;
  record::Instance instance_;
  std::uint64_t confirming_ = 0;    // token whose confirmation is under way
  std::uint64_t dead_through_ = 0;  // no token up to this one is armed again by this daemon
  SourceHandle confirm_retry_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

 private:
  record::Policy policy_;
  SourceHandle report_retry_;
};

}  // namespace usblease::host
