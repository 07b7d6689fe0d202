#include "daemon/host/rungs.h"

#include <unistd.h>

#include <string>

#include "plugin/bpf/support.h"

namespace usblease::host {
namespace {

constexpr const char* kModuleRunDir = "/run/usblease";  // USB_LEASE_DIR of plugin/qemu/lease.h
constexpr const char* kHookPath = "/etc/libvirt/hooks/qemu.d/50-usblease";

constexpr const char* kUnbindPath = "/sys/bus/usb/drivers/usb/unbind";

bool is_executable(const std::string& path) { return access(path.c_str(), X_OK) == 0; }

// Empty: guests that start now have it.
std::string why_no_qemu(const Config& config, const std::string& page_trouble, const std::string& module_state) {
  if (const auto installed = check_installed(module_state); !installed) return installed.error().message;
  // The modules know no other path, and take a device elsewhere for one that nobody manages.
  if (config.run_dir != kModuleRunDir)
    return "run_dir is " + config.run_dir + ", and our modules know " + kModuleRunDir + " only";
  return page_trouble;
}

}  // namespace

std::vector<api::RungReport> report_rungs(const Config& config, const RungFacts& facts,
                                          const std::string& module_state) {
  std::vector<api::RungReport> out;
  const auto add = [&](record::Rung rung, bool available, const std::string& detail) {
    api::RungReport& report = out.emplace_back();
    report.set_rung(rung);
    report.set_available(available);
    report.set_detail(detail);
  };
  const bool hook = is_executable(kHookPath);
  add(record::RUNG_ADMISSION, hook,
      hook ? kHookPath : std::string(kHookPath) + " is not installed; guests are not refused at their start");
  const bool relay = is_executable(config.relay_path);
  add(record::RUNG_RELAY, relay,
      relay ? config.relay_path : config.relay_path + " is not there; no endpoint can be attached");
  const std::string no_qemu = why_no_qemu(config, facts.page_trouble, module_state);
  add(record::RUNG_QEMU, no_qemu.empty(),
      no_qemu.empty() ? "our modules are installed; each guest's QEMU is looked at before it counts" : no_qemu);
  auto kernel = fence::check_support();
  if (kernel) kernel = fence::check_loaded();
  add(record::RUNG_KERNEL, kernel.has_value(), kernel ? fence::kPinRoot : kernel.error().message);
  const bool unbind = access(kUnbindPath, W_OK) == 0;
  add(record::RUNG_UNBIND, unbind, unbind ? kUnbindPath : std::string(kUnbindPath) + " cannot be written");
  add(record::RUNG_DESTROY, facts.libvirt_connected,
      facts.libvirt_connected ? "of a guest whose device on the bus cannot be taken away" : "libvirt is away");
  add(record::RUNG_WATCHDOG, false, "not configured");
  return out;
}

}  // namespace usblease::host
