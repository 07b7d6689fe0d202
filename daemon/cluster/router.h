// This host's way to the coordinator, wherever that is: in this process, or on another host. Finds out who it is, asks
// it, repeats what got no answer, and takes what it pushes.
//
// A host asks one coordinator at a time. When another one takes over, or the connection is lost, commands without an
// answer wait for the next coordinator and are sent again as they are, in their order; each of them is idempotent.
// Renewals never wait: an answer to an old one would say nothing about now.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/main_loop.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/link.h"
#include "daemon/cluster/peer_calls.h"

namespace usblease::cluster {

struct RouterEvents {
  // A coordinator is there, another one or the same again, and its whole view was passed on.
  std::function<void()> ready;
  std::function<void()> away;  // none is, after one was
  std::function<void(const peer::HostView&)> view;
  std::function<void(const std::string& request_id, const command::Reply&)> settled;
};

class Router : public CoordinatorLink {
 public:
  Router(std::string host_id, RouterEvents events) : host_id_(std::move(host_id)), events_(std::move(events)) {}

  // A candidate's own; a plain host has none. To outlive the router.
  void set_local(Coordinator* local) { local_ = local; }
  // To outlive the router; none in a cluster of one.
  void set_calls(PeerCalls* calls) { calls_ = calls; }

  // CODE_UNAVAILABLE after kAnswerWait (timing.h, "answer") without an answer.
  void submit(command::Command command, std::function<void(command::Reply)> reply) override;
  void renew(peer::Renewal renewal, std::function<void(peer::RenewalAnswer)> answer) override;

  // Sends a client's request to a coordinator on another host. `frame` gets the bytes of each api.ServerFrame, and
  // whether further ones follow. `ended` is called instead of the last one: with why the other host refused, or with
  // nullptr when the coordinator went away. 0: there is none to send it to. Neither is called after abandon().
  std::uint64_t forward(peer::Forward request, std::function<void(const std::string& server_frame, bool more)> frame,
                        std::function<void(const command::Status* refused)> ended);
  void abandon(std::uint64_t forward_id);

  // From the coordinator in this process.
  void local_active(bool active);
  void local_view(const peer::HostView& view);
  void local_settled(const std::string& request_id, const command::Reply& reply);
  // Who is the coordinator, as the host `from` says. The greatest term wins, but terms are a store's, and a store may
  // go back in time: what a host says of itself counts also under a lesser term, where nothing better is at hand, and
  // of whom a host denied to be, others' word does not count. Term 0 says nothing.
  void learned(const std::string& from, const peer::CoordinatorIs& says);
  // As this host's own store shows it: true also under a lesser term.
  void store_shows(const std::string& host_id, std::uint64_t term);
  // From PeerCalls' side of the transport, after PeerCalls itself was told.
  void peer_up(const std::string& host_id);
  void peer_down(const std::string& host_id);
  void pushed(const std::string& from, const peer::PeerAnswer& push);

  // The coordinator's state can be asked for. One in this process that reads its state anew is not ready for a moment.
  [[nodiscard]] bool ready() const { return place_ == Place::kRemote || (local() && local_->active()); }
  [[nodiscard]] bool local() const { return place_ == Place::kLocal; }
  // Who is thought to be the coordinator; term 0: nobody knows.
  [[nodiscard]] const peer::CoordinatorIs& coordinator() const { return known_; }
  // Why not ready, for people.
  [[nodiscard]] std::string trouble() const;

 private:
  enum class Place : std::uint8_t { kNone, kLocal, kSubscribing, kRemote };
  struct Pending {
    command::Command command;
    std::function<void(command::Reply)> reply;
    std::uint64_t expires_ns = 0;
    int sent = 0;       // how often; tells answers to an earlier sending
    bool waits = true;  // for a coordinator to send it to
  };
  struct Forwarded {
    PeerCalls::CallId call;
    std::function<void(const std::string&, bool)> frame;
    std::function<void(const command::Status*)> ended;
  };

  // There is somebody to send commands to.
  [[nodiscard]] bool placed() const { return place_ == Place::kLocal || place_ == Place::kRemote; }
  // At another host, or on the way to it.
  [[nodiscard]] bool abroad() const { return place_ == Place::kSubscribing || place_ == Place::kRemote; }
  [[nodiscard]] bool reaches(const std::string& host_id) const;
  void settle();
  void leave();
  void subscribe();
  void arrive(Place place);
  void not_coordinator(const std::string& host_id, const peer::CoordinatorIs& says);
  void search_later();
  void take_view(const peer::HostView& part);

  void send(std::uint64_t id);
  void send_remote(std::uint64_t id, int sent);
  void send_waiting();
  void hold(std::uint64_t id, int sent);
  void finish(std::uint64_t id, int sent, command::Reply reply);
  void schedule_expiry();
  void expire();
  void forward_answered(std::uint64_t id, const peer::PeerAnswer* answer);

  const std::string host_id_;
  RouterEvents events_;
  Coordinator* local_ = nullptr;
  PeerCalls* calls_ = nullptr;

  Place place_ = Place::kNone;
  peer::CoordinatorIs known_;
  peer::CoordinatorIs at_;                       // where kSubscribing and kRemote go to
  std::map<std::string, std::uint64_t> denied_;  // host → the term up to which it said that it is not the coordinator
  std::optional<peer::HostView> partial_view_;
  SourceHandle search_;

  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, Pending> pending_;
  std::map<std::uint64_t, Forwarded> forwards_;
  SourceHandle expiry_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::cluster
