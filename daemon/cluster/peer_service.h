// What this host answers to others: their commands and renewals, when it is the coordinator; who is, when it is not;
// and the votes and orders of candidates. Pushes to its subscribers what concerns them.
//
// A peer is authenticated by the transport; what it may say is in peer_rules.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/transport.h"
#include "peer.pb.h"

namespace usblease::cluster {

inline constexpr std::size_t kRequestsPerPeerMax = 8192;  // unanswered

// A client's request that another host passed on.
struct ForwardedCall {
  std::string host_id;  // of that host
  peer::Forward request;
  // The bytes of one api.ServerFrame; `more`: further ones follow. May be called at any time, also after the end.
  std::function<void(const std::string& server_frame, bool more)> answer;
};

struct PeerServiceHooks {
  // Who is the coordinator, as far as this host knows; term 0: nobody.
  std::function<peer::CoordinatorIs()> who;
  // Gives what to call when that client is gone. Only called while this host is the active coordinator.
  std::function<std::function<void()>(ForwardedCall)> forwarded;
  // What is not understood here: membership. Gives false when nobody understands it.
  std::function<bool(const std::string& host_id, const peer::PeerRequest&, std::function<void(peer::PeerAnswer)>)>
      other;
};

class PeerService {
 public:
  // `coordinator`: nullptr on a plain host.
  PeerService(Transport& transport, Coordinator* coordinator, PeerServiceHooks hooks);

  // From the transport.
  void accepted(AcceptedId id, const std::string& host_id);
  void request(AcceptedId id, const std::string& payload);
  void gone(AcceptedId id);

  // From the coordinator in this process. Hosts without a subscription are told nothing.
  void push_view(const std::string& host_id, const peer::HostView& view);
  void push_settled(const std::string& host_id, const lease::Settled& settled);
  void coordinator_lost();
  // Somebody else is the coordinator, or nobody.
  void tell_all();

 private:
  struct Open {
    std::string host_id;
    bool subscribed = false;
    std::size_t unanswered = 0;
    std::map<std::uint64_t, std::function<void()>> forwards;  // by request id: the client is gone
  };

  void serve(AcceptedId id, Open& open, peer::PeerRequest request);
  void command(AcceptedId id, Open& open, peer::PeerRequest request);
  void renewal(AcceptedId id, Open& open, peer::PeerRequest request);
  void subscribe(AcceptedId id, Open& open, const peer::PeerRequest& request);
  void forward(AcceptedId id, Open& open, const peer::PeerRequest& request);
  void abandon(Open& open, std::uint64_t forward_id);
  void candidate(AcceptedId id, const Open& open, const peer::PeerRequest& request);

  void end(AcceptedId id, const peer::PeerAnswer& answer);  // of a counted request
  void send(AcceptedId id, const peer::PeerAnswer& answer);
  void fail(AcceptedId id, std::uint64_t request_id, command::Code code, const std::string& why);
  peer::PeerAnswer not_coordinator(std::uint64_t request_id) const;
  [[nodiscard]] AcceptedId subscription_of(const std::string& host_id) const;
  void unsubscribe(Open& open);

  Transport& transport_;
  Coordinator* coordinator_;
  PeerServiceHooks hooks_;
  std::map<AcceptedId, Open> open_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster
