// What those who answer requests may use.
#pragma once

#include <string>

#include "api.pb.h"
#include "common/config.h"
#include "common/error.h"
#include "common/status_code.h"
#include "daemon/cluster/node.h"
#include "daemon/host/host_agent.h"
#include "daemon/lease/state.h"
#include "daemon/store/store.h"

namespace usblease::cluster {
class Membership;
}

namespace usblease::api {

struct RequestContext {
  const Config& config;
  store::Store* store;  // nullptr on a plain host
  cluster::Node& node;
  host::HostAgent& agent;
  std::string cluster_id;
  std::string version;
  bool clustered = false;  // there may be other hosts
  cluster::Membership* membership = nullptr;
};

// A frame whose status is OK.
ServerFrame ok_frame();

// What the state holds, and how it stands.
void add_counts(const lease::State& state, StatusReply& reply);

}  // namespace usblease::api
