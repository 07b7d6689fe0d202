// A host's way to the coordinator, wherever that is.
#pragma once

#include <functional>

#include "command.pb.h"
#include "peer.pb.h"

namespace usblease::cluster {

class CoordinatorLink {
 public:
  CoordinatorLink() = default;
  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;
  virtual ~CoordinatorLink() = default;

  // The reply comes when the decision is on disk, exactly once. CODE_UNAVAILABLE: no coordinator could decide; the
  // command may be sent again as it is, because every command is idempotent.
  virtual void submit(command::Command command, std::function<void(command::Reply)> reply) = 0;
  virtual void renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) = 0;
};

}  // namespace usblease::cluster
