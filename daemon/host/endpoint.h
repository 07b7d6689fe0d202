// Streams to usbredir endpoints. An endpoint serves one stream at a time, as usbredirserver and usbredirect do: it says
// hello on a new stream only when the one before has ended. That makes a hello on a fresh stream evidence that every
// earlier stream is dead (docs/architecture.md, "What counts as fenced").
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::host {

// Cancels when destroyed; the callback then never runs.
class EndpointCall {
 public:
  EndpointCall() = default;
  EndpointCall(const EndpointCall&) = delete;
  EndpointCall& operator=(const EndpointCall&) = delete;
  virtual ~EndpointCall() = default;
};

// Connects to "unix:/path" or "tcp:HOST:PORT" (HOST may be a name, or [IPv6]). Non-blocking descriptor, TCP_NODELAY
// and keepalive on TCP. kUnavailable says what to start where.
std::unique_ptr<EndpointCall> connect_endpoint(const std::string& address, std::uint32_t timeout_ms,
                                               std::function<void(Result<UniqueFd>)> done);

struct EndpointDevice {
  std::string version;  // the endpoint's own, untrusted
  std::uint32_t vendor = 0;
  std::uint32_t product = 0;
};

// Connects, exchanges hellos, waits for the endpoint's device, then closes its side and waits for the endpoint's end of
// stream. kUnavailable: nobody listens or nothing is plugged in; kTimedOut: it accepts but says nothing; kBadInput:
// what it says is not usbredir.
std::unique_ptr<EndpointCall> probe_endpoint(const std::string& address, std::uint32_t timeout_ms,
                                             std::function<void(Result<EndpointDevice>)> done);

}  // namespace usblease::host
