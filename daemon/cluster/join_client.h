// The other end of TransportEvents::join: a host that is in no cluster yet asks one to take it. It has no certificate;
// it knows the cluster by the fingerprint of its CA, which the token carries.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/error.h"
#include "daemon/cluster/join_token.h"

namespace usblease::cluster {

struct JoinAnswer {
  std::string payload;
  std::string authority;  // PEM: the CA with the token's fingerprint, proved by the member that answered
  std::string member;     // host id of that member
};

// Asks the token's addresses one after the other until one answers; `done` runs once, on the main loop. At most
// timeout_ms for all. kDenied: an address is held by somebody who is not a member of that cluster. kUnavailable: none
// answers.
class JoinClient {
 public:
  using Done = std::function<void(Result<JoinAnswer>)>;
  // payload: at most kJoinPayloadMax (transport.h), else kBadInput.
  JoinClient(JoinToken token, std::string payload, std::uint32_t timeout_ms, Done done);
  ~JoinClient();  // before done: gives up without calling it
  JoinClient(const JoinClient&) = delete;
  JoinClient& operator=(const JoinClient&) = delete;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace usblease::cluster
