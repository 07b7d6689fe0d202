// The relay's side of proto/relay.proto: one daemon at a time, told everything that has happened so far.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/fd.h"
#include "daemon/relay/stream.h"
#include "relay.pb.h"

namespace usblease::relay {

class Control {
 public:
  // `listener`: a listening SOCK_SEQPACKET socket. `hello` is what every connection begins with (its deadline is filled
  // in from the stream). Only uid 0 and `served_uid` are served.
  Control(UniqueFd listener, Hello hello, uid_t served_uid, Stream* stream);

  [[nodiscard]] int listener() const { return listener_.get(); }
  [[nodiscard]] int connection() const { return connection_.get(); }  // -1: no daemon is connected

  // Takes a new connection; it replaces the one before, since the daemon that restarted is the one that counts.
  void on_connect();
  // Obeys what the daemon says.
  void on_message();
  // Says what has happened in the stream and has not been said on this connection.
  void report();

  // The daemon has written the fence down: the relay's work is done.
  [[nodiscard]] bool acknowledged() const { return acknowledged_; }

 private:
  void obey(const ToRelay& message);
  [[nodiscard]] bool names_our_lease(std::uint64_t token) const;
  bool say(const ToDaemon& message);
  [[nodiscard]] bool fact(int index, ToDaemon* message) const;

  UniqueFd listener_;
  UniqueFd connection_;
  Hello hello_;
  uid_t served_uid_;
  Stream* stream_;
  int said_ = 0;  // how many facts this connection has been told
  bool acknowledged_ = false;
};

}  // namespace usblease::relay
