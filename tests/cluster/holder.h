// What every holder has: who it is, whom it asks, and where it writes down what it knows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cluster/daemon_client.h"
#include "tests/cluster/history_log.h"

namespace usblease::cluster_test {

struct HolderOptions {
  std::string socket_path;  // of the host's usbleased
  std::string run_dir;      // of the host's usbleased
  std::string pid_dir;      // what libvirt_run_dir= names
  std::string history_path;
  std::string name;  // of the guest
  std::string uuid;  // of the guest; bare: made anew for each lease
  std::vector<std::string> devices;
  std::uint32_t wait_ms = 2'000;
  std::uint32_t hold_ms = 0;     // guest: 0, until it is told to end; bare: at most
  std::uint32_t packet_ms = 10;  // between two lines
  std::uint32_t seed = 0;
  bool connects = true;  // guest: false for a QEMU that has not come to it
};

// SIGTERM or SIGINT came: end in order.
[[nodiscard]] bool told_to_end();
// Waits, and returns early when told to end.
void sleep_ms(std::uint32_t duration_ms);

// A guest: takes its devices by the hook's calls, as libvirt would, is the process that libvirt's PID file names, and
// writes lines "hold UUID TOKEN NUMBER" to each device as fast as it is told until its streams end. Exit code: 0 held
// and ended, 3 was refused, 4 does not know.
int run_guest(const HolderOptions& options);

// Says that the guest, whose process is gone, has ended, as libvirt does; again and again until the daemon has heard
// it.
int run_ended(const HolderOptions& options);

// A client of bare leases: takes and gives back the devices until it is told to end.
int run_bare(const HolderOptions& options);

// Gives back what a killed holder may still have: `name` is the nonce of its start. Exit code 0: it has nothing.
int run_release(const HolderOptions& options);

}  // namespace usblease::cluster_test
