// The relays of this host: starts them, finds those of an earlier daemon again, talks to all of them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "common/main_loop.h"
#include "relay.pb.h"

namespace usblease::host {

struct RelayStart {
  std::string device;
  std::uint64_t token = 0;
  std::string guest_uuid;
  std::uint64_t instance = 0;
  pid_t peer_pid = 0;
  std::uint64_t deadline_ns = 0;  // CLOCK_BOOTTIME
  UniqueFd guest;                 // verified stream to the guest's QEMU
  UniqueFd endpoint;              // connected stream to the endpoint
};

struct RelayEvents {
  std::function<void(const relay::Hello&)> hello;  // after spawn and after adopt
  std::function<void(const std::string& device, std::uint64_t token)> connected;
  std::function<void(const std::string& device, std::uint64_t token, const relay::DeviceSeen&)> device_seen;
  std::function<void(const std::string& device, std::uint64_t token, const relay::Ended&)> ended;
  std::function<void(const std::string& device, std::uint64_t token)> fenced;
  // The relay is gone without having said Fenced (killed): its end of both streams is closed, the endpoint's is not
  // known.
  std::function<void(const std::string& device, std::uint64_t token)> lost;
};

struct RelayOptions {
  std::string run_dir;  // sockets in RUN_DIR/relays/
  std::string relay_path;
  uid_t uid = 65534;
  gid_t gid = 65534;
};

class Relays {
 public:
  Relays(RelayOptions options, RelayEvents events);
  ~Relays();  // leaves the relays running
  Relays(const Relays&) = delete;
  Relays& operator=(const Relays&) = delete;

  // Finds the relays of an earlier daemon; `done` after each of them said hello or was found dead (bounded).
  // The sockets of dead ones are removed and reported through events.lost.
  void adopt(std::function<void()> done);

  // Starts a relay; both streams are its own from now on, also when it fails. kRefused: there is one for this device
  // and token. A relay that cannot be executed is reported through events.lost.
  Result<void> spawn(RelayStart start);
  // No-ops when there is no such relay.
  void renew(const std::string& device, std::uint64_t token, std::uint64_t deadline_ns);
  void revoke(const std::string& device, std::uint64_t token);
  void acknowledge(const std::string& device, std::uint64_t token);

  [[nodiscard]] bool has(const std::string& device, std::uint64_t token) const;
  [[nodiscard]] bool has_any(const std::string& device) const;
  [[nodiscard]] std::size_t count() const;

 private:
  class Link;
  using Key = std::pair<std::string, std::uint64_t>;
  Link* find(const std::string& device, std::uint64_t token) const;
  Result<std::string> prepare_directory() const;
  Link& add_link(const Key& key);
  void remove(Key key, bool lost);
  void finish_adopting();

  std::function<void()> adopted_;  // set while adopt() waits for hellos
  SourceHandle adopt_timeout_;
  RelayOptions options_;
  RelayEvents events_;
  std::map<std::pair<std::string, std::uint64_t>, std::unique_ptr<Link>> links_;
};

}  // namespace usblease::host
