// What each request of the protocol means: checks who may, asks the coordinator and this host, and answers.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "daemon/api/admin_requests.h"
#include "daemon/api/request_context.h"
#include "daemon/api/server.h"
#include "daemon/host/rungs.h"

namespace usblease::api {

class Requests {
 public:
  explicit Requests(RequestContext context) : context_(std::move(context)) {}

  void handle(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  // From a client of another host; gives what to call when that client is gone.
  std::function<void()> handle_forwarded(cluster::ForwardedCall call);
  // A coordinator is there (again), or its state is: answers those who asked meanwhile.
  void on_ready();
  // The coordinator in this process is none any more: its clients are answered by the next one.
  void on_inactive();
  // To everyone who follows.
  void on_event(const record::Event& event);

 private:
  void answer(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  void ask_coordinator(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  // Finds the device, here or at the coordinator. `found` gets nullptr when there is none of that name.
  void with_device(const std::string& device, const Responder& responder,
                   std::function<void(const record::Device* device)> found, std::function<void()> again);

  void list_devices(const Responder& responder);
  void device_info(const DeviceInfo& request, const Responder& responder);
  void attach(const Caller& caller, const Attach& request, const Responder& responder);
  void detach(const Caller& caller, const Detach& request, const Responder& responder);
  void assign(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  void assign_known(const Assign& request, const Responder& responder);
  void revoke(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  void extend(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  void queue(const Queue& request, const Responder& responder);
  void events(const Caller& caller, const ClientFrame& frame, const Responder& responder);
  void host_info(const Responder& responder);
  void status(const Responder& responder);
  void list_guests(const Responder& responder);
  void acquire_lease(const Caller& caller, const AcquireLease& request, const Responder& responder);
  void release_lease(const Caller& caller, const ReleaseLease& request, const Responder& responder);
  void lock(const Caller& caller, const Lock& request, const Responder& responder);
  void unlock(const Unlock& request, const Responder& responder);
  void hook_call(const Caller& caller, const HookCall& request, const Responder& responder);

  void add_own_deadlines(ServerFrame& frame) const;
  [[nodiscard]] DeviceView view_of(const record::Device& device, std::size_t queue_length) const;
  [[nodiscard]] record::Start bare_start(const std::string& guest_uuid, const std::string& nonce) const;
  [[nodiscard]] std::string principal_of(const Caller& caller) const;
  // The coordinator's state; answers and gives nullptr when there is none now.
  const lease::State* state_or_fail(const Responder& responder) const;

  [[nodiscard]] cluster::Router& router() const { return context_.node.router(); }

  // What is asked while there is no coordinator waits for it, bounded, rather than fail.
  struct Deferred {
    Caller caller;
    ClientFrame frame;
    Responder responder;
    SourceHandle timeout;
  };
  void defer(const Caller& caller, const ClientFrame& frame, const Responder& responder);

  RequestContext context_;
  AdminRequests admin_{context_};
  std::uint64_t next_deferred_ = 1;
  std::map<std::uint64_t, Deferred> deferred_;
  std::uint64_t next_follower_ = 1;
  struct Follower {
    Caller caller;
    ClientFrame frame;  // with the number of the last event that it was sent
    Responder responder;
  };
  std::map<std::uint64_t, Follower> followers_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::api
