// How usbleased starts a relay: the border between the two programs.
//
// Command line: usblease-relay --device NAME --token N --guest UUID --instance N --peer-pid PID --deadline-ns N
//                              --uid UID --gid GID
// Descriptors, inherited by number; the relay closes all others:
//   0 /dev/null, 1 /dev/null, 2 log (stderr or the journal)
//   3 the stream to the guest's QEMU, whose peer the daemon has verified
//   4 the stream to the endpoint, connected
//   5 a listening SOCK_SEQPACKET Unix socket, RUN_DIR/relays/DEVICE.TOKEN: proto/relay.proto. Only uid 0, or the uid
//     that started the relay, is served
//
// The relay is not a child that must be waited for: it is double-forked into a session of its own, so that it outlives
// the daemon. It exits 0 after Ack of Fenced. It never exits before the endpoint's end of stream, unless killed: the
// open control socket is the daemon's proof that it is still there.
#pragma once

#include <cstdint>

namespace usblease::relay {

inline constexpr int kGuestFd = 3;
inline constexpr int kEndpointFd = 4;
inline constexpr int kControlFd = 5;

inline constexpr std::uint32_t kRelayProtocol = 1;
inline constexpr std::size_t kControlMessageMax = 4096;

}  // namespace usblease::relay
