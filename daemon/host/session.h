// This host's session with the coordinator: registers the host with its floors, renews what is armed, and passes on
// what the answers say. The decisions are lease::HostSession's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/link.h"
#include "daemon/host/home_file.h"
#include "daemon/lease/host_session.h"

namespace usblease::host {

struct SessionEvents {
  std::function<void()> registered;  // each time; floors are known, devices may be reported
  std::function<void(const lease::DeviceToken&, std::uint64_t deadline_ns)> deadline;
  std::function<void(const lease::DeviceToken&)> fence;
};

class Session {
 public:
  Session(cluster::CoordinatorLink& link, HomeFile& home_file, record::Host self, lease::Timing timing,
          SessionEvents events);

  void start();
  // The coordinator changed or came back: register again now.
  void restart();

  // Registers again when they are others than before.
  void set_rungs(const std::vector<record::Rung>& rungs);

  void arm(const lease::DeviceToken& lease, std::uint32_t isolation_ms) { timing_.arm(lease, isolation_ms); }
  void disarm(const lease::DeviceToken& lease) { timing_.disarm(lease); }
  [[nodiscard]] std::uint64_t deadline(const lease::DeviceToken& lease) const { return timing_.deadline(lease); }
  [[nodiscard]] bool registered() const { return registered_; }
  [[nodiscard]] const record::Host& self() const { return self_; }

 private:
  void register_host();
  void on_registered(const command::Reply& reply);
  void renew();
  void on_answer(const peer::RenewalAnswer& answer);

  cluster::CoordinatorLink& link_;
  HomeFile& home_file_;
  record::Host self_;
  lease::HostSession timing_;
  std::uint64_t renewal_ns_;
  SessionEvents events_;
  bool registered_ = false;
  bool registering_ = false;
  bool stale_ = false;              // what this host says of itself has changed since the registration was sent
  std::uint64_t registration_ = 0;  // tells answers to an earlier one
  SourceHandle next_renewal_;
  SourceHandle retry_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
