// Where the listening socket of the request protocol comes from.
#pragma once

#include <string>

#include "common/error.h"
#include "common/fd.h"

namespace usblease::api {

// The socket that systemd passed (sd_listen_fds(3)), or, when it passed none, our own at `path`. systemd's must be
// exactly one listening Unix stream socket, else kBadInput says what was passed. Everybody may connect (mode 0666): who
// may do what is decided by credentials, and who may do nothing is told why. Call once, before there are threads:
// removes systemd's variables from the environment.
Result<UniqueFd> request_socket(const std::string& path);

// For a program that is about to take this one's place by execv: it finds `listening` as if systemd had passed it, and
// who connects meanwhile waits instead of being refused. Changes this process's descriptor 3 and its environment.
Result<void> hand_over_socket(UniqueFd listening);

}  // namespace usblease::api
