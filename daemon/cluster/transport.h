// How daemons talk to each other: frames between hosts of one cluster. It knows nothing of what the frames mean.
//
// Every host listens, and dials the peers that it is told to (set_peers). One connection per ordered pair: the dialer
// asks, answers and pushes come back on that same connection, in order. All calls and callbacks are on the main loop's
// thread. No callback runs inside a call of this interface; every callback may call it, but may not destroy it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace usblease::cluster {

// One accepted connection; never used again for another one of the same Transport. Never 0.
using AcceptedId = std::uint64_t;

enum class DownReason : std::uint8_t {
  kRefused,     // nobody listens at any of its addresses, yet the host is there: that process is gone
  kReset,       // an authenticated connection ended without a goodbye: that process is gone (or was, a moment ago)
  kClosed,      // it said goodbye, or hung up before it was authenticated
  kTimedOut,    // no sign of life: host, network or process may be dead, slow or frozen
  kUntrusted,   // it could not prove that it is that host of this cluster, or it does not trust our certificate
  kForbidden,   // it says that this host is no longer a member of the cluster
  kUnresolved,  // none of its addresses has a meaning now
};
// "refused", "reset", …
const char* down_reason_name(DownReason reason);

struct Peer {
  std::string host_id;
  std::vector<std::string> addresses;  // "HOST:PORT", "[V6]:PORT", tried in order; at most kPeerAddressesMax
  bool operator==(const Peer&) const = default;
};

inline constexpr std::size_t kPeersMax = 64;
inline constexpr std::size_t kPeerAddressesMax = 8;

// Each must be set.
struct TransportEvents {
  // A connection that we dialed is authenticated, by both sides.
  std::function<void(const std::string& host_id)> up;
  // An authenticated dialed connection ended, or an attempt at all addresses failed: so it comes again and again while
  // the peer cannot be reached. kRefused only if all its addresses refused. `why`: one sentence for people.
  std::function<void(const std::string& host_id, DownReason, const std::string& why)> down;
  // A frame on a dialed connection; between up and down.
  std::function<void(const std::string& host_id, std::string payload)> answer;
  // A host of the cluster has connected, and has proved to be `host_id`. It replaces an earlier connection of that
  // host, whose gone comes first.
  std::function<void(AcceptedId, const std::string& host_id)> accepted;
  // A frame on an accepted connection; between accepted and gone.
  std::function<void(AcceptedId, std::string payload)> request;
  // The accepted connection ended, whoever ended it.
  std::function<void(AcceptedId)> gone;
  // Somebody who is not of the cluster asks to join: one frame, at most kJoinPayloadMax, and one answer, which may come
  // later, once. An answer after the caller has hung up, or after the Transport's end, is dropped.
  std::function<void(std::string payload, std::function<void(std::string)> answer)> join;
};

inline constexpr std::size_t kJoinPayloadMax = 16 * 1024;  // of a request; an answer may have kFramePayloadMax

class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;  // no callback runs any more; open connections are closed in order

  // Dials these and keeps them connected; waits a bounded, random time between attempts. What is no longer named is
  // closed, without a `down`; a peer whose addresses alone have changed keeps its connection. At most kPeersMax.
  virtual void set_peers(std::vector<Peer> peers) = 0;

  // Sends a frame to a peer that is up. Payload: 1 byte to kFramePayloadMax. False: not up, or its queue is full, and
  // nothing was sent. True says nothing about arrival: an answer does.
  virtual bool ask(const std::string& host_id, std::string payload) = 0;

  // Sends a frame on an accepted connection. Payload as for ask. False: gone, or does not read what it is sent and is
  // being cut off.
  virtual bool answer(AcceptedId id, std::string payload) = 0;

  // Closes in order, after what was queued if the peer reads; gone follows.
  virtual void drop(AcceptedId id) = 0;

  // Is no host of this cluster any more: its connections are ended (it is told that it is no member: kForbidden there),
  // and it is refused until permit(). Kept in memory only: to be called again after a start.
  virtual void forbid(const std::string& host_id) = 0;
  virtual void permit(const std::string& host_id) = 0;

  // Between up and down.
  [[nodiscard]] virtual bool connected(const std::string& host_id) const = 0;
};

}  // namespace usblease::cluster
