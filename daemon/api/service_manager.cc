#include "daemon/api/service_manager.h"

#include <systemd/sd-daemon.h>

#include "common/log.h"
#include "common/text.h"

namespace usblease::api {
namespace {

void notify(const std::string& state) {
  const int sent = sd_notify(/*unset_environment=*/0, state.c_str());
  if (sent < 0) log::warning("cannot notify systemd", {{"ERROR", g_strerror(-sent)}});
}

// A line end would begin another assignment.
std::string status_line(const std::string& status) { return "STATUS=" + escape_text(status); }

}  // namespace

void notify_ready(const std::string& status) { notify("READY=1\n" + status_line(status)); }

void notify_status(const std::string& status) { notify(status_line(status)); }

void notify_stopping() { notify("STOPPING=1\nSTATUS=stopping; relays and their leases live on"); }

Watchdog::Watchdog() {
  std::uint64_t interval_us = 0;
  const int enabled = sd_watchdog_enabled(/*unset_environment=*/0, &interval_us);
  if (enabled < 0) log::warning("systemd's WATCHDOG_USEC cannot be used", {{"ERROR", g_strerror(-enabled)}});
  if (enabled <= 0 || interval_us == 0) return;
  half_interval_ns_ = interval_us * 1000 / 2;
  ping();
}

void Watchdog::ping() {
  notify("WATCHDOG=1");
  next_ = run_after(half_interval_ns_, [this] { ping(); });
}

}  // namespace usblease::api
