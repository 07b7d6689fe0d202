// TCP sockets and their addresses as text. Private to daemon/cluster/.
#pragma once

#include <gio/gio.h>
#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "common/main_loop.h"
#include "daemon/cluster/transport.h"

namespace usblease::cluster {

inline constexpr std::uint16_t kDefaultPort = 7471;

struct Endpoint {
  sockaddr_storage address{};
  socklen_t size = 0;
  std::string text;  // "10.0.0.1:7471"
};

// Listens on "ADDRESS:PORT", "[V6]:PORT" or "*:PORT" (all addresses); non-blocking.
Result<UniqueFd> listen_tcp(const std::string& address);
// Who is at the other end: the address alone, and with the port.
struct PeerAddress {
  std::string host;
  std::string text;
};
PeerAddress peer_address(const sockaddr_storage& address);
Result<std::uint16_t> local_port(int fd);

// No delay, and the kernel's own watch for a dead host.
void prepare_tcp(int fd, std::uint32_t silent_ms);

// What "HOST:PORT" means now; names are looked up by GLib (in its threads). `done` comes later, unless the handle dies
// before. Empty: nothing, with why.
class Resolution {
 public:
  using Done = std::function<void(std::vector<Endpoint>, const std::string& why)>;
  Resolution(const std::string& address, Done done);
  ~Resolution();
  Resolution(const Resolution&) = delete;
  Resolution& operator=(const Resolution&) = delete;

 private:
  struct State;
  static void looked_up(GObject* resolver, GAsyncResult* result, gpointer data);
  std::shared_ptr<State> state_;
};

// One connect(2), bounded. `done` comes later, unless the handle dies before.
class Connecting {
 public:
  using Done = std::function<void(UniqueFd, DownReason, const std::string& why)>;  // an empty fd: failed
  Connecting(const Endpoint& endpoint, std::uint32_t timeout_ms, Done done);

 private:
  void finish(int error);
  UniqueFd fd_;
  Done done_;
  SourceHandle watch_;
  SourceHandle timer_;
};

}  // namespace usblease::cluster
