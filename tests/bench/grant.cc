#include "tests/bench/grant.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "api.pb.h"
#include "common/fd.h"
#include "tests/bench/latency.h"
#include "tests/bench/private_cluster.h"
#include "tests/bench/process.h"
#include "tests/bench/unix_echo.h"

namespace usblease::bench {
namespace {

constexpr const char* kGuestUuid = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
constexpr std::uint32_t kAskMs = 10'000;
constexpr const char* kNonce = "00112233445566aa";
// What one grant adds to SQLite's log: pages of 4 KiB with a header of 24 bytes (https://sqlite.org/fileformat2.html).
constexpr std::size_t kPageBytes = 4096 + 24;

bool call(cluster_test::DaemonClient& client, const api::ClientFrame& frame) {
  const auto answer = client.ask(frame, kAskMs);
  if (answer && answer->status().code() == command::CODE_OK) return true;
  std::fprintf(stderr, "usblease-bench: %s\n",
               answer ? answer->status().message().c_str() : answer.error().message.c_str());
  return false;
}

api::ClientFrame acquire_frame(const std::string& device, int round) {
  api::ClientFrame frame;
  api::AcquireLease& acquire = *frame.mutable_acquire_lease();
  acquire.set_request_id("bench-" + std::to_string(round));
  acquire.set_guest_uuid(kGuestUuid);
  acquire.set_guest_name("bench");
  acquire.set_nonce(kNonce);
  acquire.add_devices(device);
  return frame;
}

api::ClientFrame release_frame() {
  api::ClientFrame frame;
  frame.mutable_release_lease()->set_guest_uuid(kGuestUuid);
  frame.mutable_release_lease()->set_nonce(kNonce);
  frame.mutable_release_lease()->set_wait_fenced(true);
  return frame;
}

class SyncedFile {
 public:
  explicit SyncedFile(const std::string& path)
      : fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) {}
  // Appends as a log does, and waits for the disk.
  bool append(std::size_t bytes) {
    const std::string data(bytes, 'x');
    return write(fd_.get(), data.data(), data.size()) == static_cast<ssize_t>(data.size()) && fdatasync(fd_.get()) == 0;
  }

 private:
  UniqueFd fd_;
};

std::string domain_xml(const std::string& device) {
  const std::string metadata =
      std::string("<metadata><usblease:devices xmlns:usblease='urn:usblease:domain:1'><usblease:device name='") +
      device + "'/></usblease:devices></metadata>";
  return std::string("<domain type='qemu' id='7'><name>bench</name><uuid>") + kGuestUuid + "</uuid>" +
         (device.empty() ? "" : metadata) +
         "<memory unit='KiB'>65536</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
         "<emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><source "
         "file='/var/lib/libvirt/images/bench.qcow2'/>"
         "<target dev='vda' bus='virtio'/></disk><interface type='network'><source "
         "network='default'/></interface></devices></domain>";
}

struct Report {
  Latencies acquire, release, sync, round_trip, hook_nothing, hook_device, process;
};

Result<void> measure_leases(const PrivateCluster& host, int rounds, Report& report) {
  auto client = host.connect(0);
  const std::string device = host.device(0, 0);
  SyncedFile file(host.directory() + "/synced");
  UnixEcho echo;
  // All four alternate, so that a noisy minute hits them alike.
  for (int round = 0; round < rounds; ++round) {
    const bool done = report.acquire.time([&] { return call(client, acquire_frame(device, round)); }) &&
                      report.release.time([&] { return call(client, release_frame()); }) &&
                      report.sync.time([&] { return file.append(2 * kPageBytes); }) &&
                      report.round_trip.time([&] { return echo.round_trip(); });
    if (!done) return fail(ErrorCode::kInternal, "round " + std::to_string(round) + " failed");
  }
  return {};
}

Result<void> measure_hook(const PrivateCluster& host, int rounds, Report& report) {
  const std::string hook = std::string(USBLEASE_BUILD_DIR) + "/plugin/libvirt/usblease-hook";
  const std::vector<std::string> environment = {"USBLEASE_CONFIG=" + host.config_path(0)};
  const auto run = [&](const char* operation, const std::string& xml) {
    return run_program({hook, "bench", operation, "begin", "-"}, environment, xml) == 0;
  };
  const std::string nothing = domain_xml("");
  const std::string device = domain_xml(host.device(0, 0));
  for (int round = 0; round < rounds; ++round) {
    const bool done = report.process.time([] { return run_program({"/bin/true"}, {}, "") == 0; }) &&
                      report.hook_nothing.time([&] { return run("prepare", nothing); }) &&
                      report.hook_device.time([&] { return run("prepare", device); }) && run("release", device);
    if (!done) return fail(ErrorCode::kInternal, "the hook failed in round " + std::to_string(round));
  }
  return {};
}

void print(const Report& r, const GrantOptions& options) {
  const double floor_us = r.sync.quantile_us(0.5) + r.round_trip.quantile_us(0.5);
  const double ratio = floor_us > 0 ? r.acquire.quantile_us(0.5) / floor_us : 0;
  if (options.json) {
    std::printf(
        "{\"acquire\": %s,\n \"release_until_fenced\": %s,\n \"fdatasync_same_bytes\": %s,\n \"unix_round_trip\": %s,\n"
        " \"acquire_p50_over_fdatasync_plus_round_trip\": %.2f,\n \"hook_declares_nothing\": %s,\n "
        "\"hook_declares_device\": %s,\n \"bin_true\": %s}\n",
        r.acquire.json().c_str(), r.release.json().c_str(), r.sync.json().c_str(), r.round_trip.json().c_str(), ratio,
        r.hook_nothing.json().c_str(), r.hook_device.json().c_str(), r.process.json().c_str());
    return;
  }
  const auto line = [](const char* what, const Latencies& l) {
    std::printf("%-42s %9.1f %9.1f\n", what, l.quantile_us(0.5), l.quantile_us(0.99));
  };
  std::printf("%-42s %9s %9s\n", "microseconds", "p50", "p99");
  line("acquire through the socket", r.acquire);
  line("release until fenced", r.release);
  line("fdatasync of the same bytes", r.sync);
  line("round trip on a raw Unix socket", r.round_trip);
  line("hook, guest declares nothing", r.hook_nothing);
  line("hook, guest declares a device", r.hook_device);
  line("/bin/true", r.process);
  std::printf("acquire / (fdatasync + round trip), p50: %.2f\n", ratio);
}

}  // namespace

Result<void> run_grant(const GrantOptions& options) {
  const auto host = PrivateCluster::start(options.directory, /*hosts=*/1, /*devices_per_host=*/1);
  if (!host) return tl::unexpected(host.error());
  if (auto ready = (*host)->wait_whole(); !ready) return tl::unexpected(ready.error());
  Report report;
  if (auto measured = measure_leases(**host, options.rounds, report); !measured) return measured;
  if (auto measured = measure_hook(**host, options.hook_rounds, report); !measured) return measured;
  print(report, options);
  return {};
}

}  // namespace usblease::bench
