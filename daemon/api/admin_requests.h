// What an administrator asks of the cluster: status, repair, drains, backups, who belongs to it. All but joining and
// founding is answered where the coordinator is.
#pragma once

#include <string>

#include "daemon/api/request_context.h"
#include "daemon/api/responder.h"

namespace usblease::api {

class AdminRequests {
 public:
  explicit AdminRequests(const RequestContext& context) : context_(context) {}

  // False: the frame is none of these, and nothing was done.
  bool handle(const std::string& principal, const ClientFrame& frame, const Responder& responder);

 private:
  // The coordinator's state; answers and gives nullptr when there is none here now.
  const lease::State* state_or_fail(const Responder& responder) const;
  // `done` makes the final frame out of a reply that is OK.
  void submit(command::Command command, const Responder& responder,
              std::function<ServerFrame(const command::Reply&)> done);

  void cluster_status(const Responder& responder);
  void repair(const std::string& principal, const Responder& responder);
  void declare_dead(const std::string& principal, const DeclareDead& request, const Responder& responder);
  void drain(const std::string& principal, const Drain& request, const Responder& responder);
  void backup(const Responder& responder);
  void restore_part(const std::string& principal, const RestorePart& request, const Responder& responder);
  void transfer(const ClusterTransfer& request, const Responder& responder);
  void membership(const std::string& principal, const ClientFrame& frame, const Responder& responder);

  const RequestContext& context_;
};

// Those of them that are answered where the coordinator is.
bool is_for_coordinator(const ClientFrame& frame);

}  // namespace usblease::api
