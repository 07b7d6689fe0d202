// The one reader of usbleased.conf (key file). Used by the daemon and, for the rules of what is managed, by the hook.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/log.h"

namespace usblease {

// What a hostdev or a plugged device is compared with: usb=VENDOR:PRODUCT[:SERIAL]
struct UsbMatch {
  std::uint32_t vendor = 0;
  std::uint32_t product = 0;
  std::string serial;  // empty: any
};

enum class Rung : std::uint8_t { kNone = 0, kAdmission, kRelay, kQemu, kKernel, kUnbind, kDestroy, kWatchdog };

struct DeviceConfig {
  std::string name;
  // Exactly one of the two is set.
  std::string endpoint;  // "unix:/absolute/path" or "tcp:HOST:PORT"
  std::optional<UsbMatch> usb;
  std::string port;                 // with usb: "1-2.4", as sysfs names what is plugged in there; empty: any
  std::vector<std::string> guests;  // names or UUIDs that may ask; empty: any
  std::uint64_t until_max_s = 0;    // 0: no limit
  std::uint32_t isolation_ms = 0;   // 0: the session's ttl
  Rung min_rung = Rung::kNone;
  bool reset = true;  // with usb: by the bus, before each holder
};

enum class ReadAccess : std::uint8_t { kNobody, kEveryone };

struct StoreConfig {
  std::vector<std::string> endpoints;  // "https://HOST:PORT"
  std::string ca_file;
  std::string cert_file;
  std::string key_file;
  std::string prefix = "/usblease/";
};

struct Config {
  // [daemon]
  std::string host_id;  // default: the machine's host name
  std::string state_dir = "/var/lib/usblease";
  std::string run_dir = "/run/usblease";
  log::Level log_level = log::Level::kInfo;
  std::string libvirt_uri = "qemu:///system";
  std::string libvirt_run_dir = "/run/libvirt/qemu";  // libvirt's PID files: which process is which guest's QEMU
  std::string relay_path;                             // default: LIBEXECDIR/usblease-relay
  std::string relay_user = "nobody";
  // [cluster] — in force once this host is a member of one
  std::string cluster_listen = ":7471";        // "ADDRESS:PORT"; no ADDRESS: all
  std::vector<std::string> cluster_advertise;  // "HOST:PORT"; empty: found out when the host joins
  // [store] — an etcd that the site has; no endpoints: usbleased's own
  StoreConfig store;
  // [access]
  std::string act_group = "usblease";
  ReadAccess read = ReadAccess::kNobody;
  // [timing] — bounds and meanings: daemon/lease/timing.h
  std::uint32_t ttl_ms = 10'000;
  std::uint32_t renewal_ms = 2'000;
  std::uint32_t grace_ms = 1'000;
  std::uint32_t drift_ppm = 500;
  // [hook]
  std::uint32_t hook_deadline_ms = 20'000;
  // [device NAME]
  std::vector<DeviceConfig> devices;

  [[nodiscard]] std::string socket_path() const { return run_dir + "/usbleased.sock"; }
};

inline constexpr const char* kDefaultConfigPath = "/etc/usblease/usbleased.conf";

// Reads and checks the whole file. An unknown group or key, a key or group given twice, a bad value: kBadInput with
// file, line, key and what is allowed. A file that is absent: all defaults when `path` is kDefaultConfigPath, else
// kNotFound. At most 1 MiB, 1024 devices.
Result<Config> load_config(const std::string& path);

// The same on text in memory; `path` stands in messages only.
Result<Config> parse_config(const std::string& text, const std::string& path);

const char* rung_name(Rung rung);

// The guest socket on which a guest's QEMU reaches a device: RUN_DIR/guests/UUID/DEVICE. Part of the interface to
// domain XML: <redirdev bus='usb' type='unix'><source mode='connect' path='…'/></redirdev>
std::string guest_socket_path(const std::string& run_dir, const std::string& guest_uuid, const std::string& device);

struct GuestSocketName {
  std::string guest_uuid;
  std::string device;
};
// The reverse; nullopt: not a path of ours. `bad` is set when it lies under ours but is not well formed.
std::optional<GuestSocketName> parse_guest_socket_path(const std::string& run_dir, const std::string& path, bool* bad);

}  // namespace usblease
