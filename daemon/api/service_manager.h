// What systemd is told (sd_notify(3)). All of it does nothing when no service manager listens.
#pragma once

#include <cstdint>
#include <string>

#include "common/main_loop.h"

namespace usblease::api {

// Start-up is complete; `status` is one line for `systemctl status`.
void notify_ready(const std::string& status);
// A new line for `systemctl status`.
void notify_status(const std::string& status);
// A clean stop began.
void notify_stopping();

// Tells systemd from the main loop that the main loop still runs, at half of WatchdogSec=, for as long as it lives.
class Watchdog {
 public:
  Watchdog();
  [[nodiscard]] bool enabled() const { return half_interval_ns_ != 0; }

 private:
  void ping();
  std::uint64_t half_interval_ns_ = 0;
  SourceHandle next_;
};

}  // namespace usblease::api
