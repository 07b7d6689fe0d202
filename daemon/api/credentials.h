// Who is asking, by what the kernel says of the other end of a Unix socket.
#pragma once

#include <string>

#include "common/error.h"
#include "common/unix_socket.h"

namespace usblease::api {

struct Caller {
  uid_t uid = 0;
  pid_t pid = 0;
  std::string name;      // "root", or the uid
  bool may_act = false;  // root, or in the act group (also by supplementary group)
  bool may_read = false;
  std::string host;  // whose user it is; empty: this host's
};

struct AccessRules {
  std::string act_group;  // may not exist: then root alone
  bool everyone_reads = false;
};

// `fd`: a connected Unix socket whose peer has `credentials`. Groups count when the peer's process had them at
// connect(2), or when the user database gives them to its user now. Never fails: what cannot be found out is not
// granted.
Caller identify(int fd, const PeerCredentials& credentials, const AccessRules& rules);

// What a caller that may do nothing is told: which group to join.
std::string denial(const Caller& caller, const AccessRules& rules);

}  // namespace usblease::api
