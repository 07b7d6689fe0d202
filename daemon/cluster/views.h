// What each subscribed host is told of the record: the whole that concerns it, then every change.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "daemon/lease/state.h"
#include "peer.pb.h"

namespace usblease::cluster {

using Changes = std::map<std::string, std::optional<std::string>>;  // key → value; nullopt: deleted

class Views {
 public:
  using Push = std::function<void(const std::string& host_id, const peer::HostView&)>;
  explicit Views(Push push) : push_(std::move(push)) {}

  // From now on this host is told. `state`: nullptr while there is none; the whole view is pushed now, or by load().
  void subscribe(const std::string& host_id, const lease::State* state);
  void unsubscribe(const std::string& host_id);

  // The state was read anew: everybody gets the whole.
  void load(const lease::State& state);
  // `state`: after these changes.
  void publish(const lease::State& state, const Changes& changes);

  // Where a waiting request comes from; empty: it was never published as waiting, or has ended. Ask before publish().
  [[nodiscard]] std::string host_of_request(const std::string& request_id) const;
  [[nodiscard]] const std::set<std::string>& subscribers() const { return subscribers_; }

 private:
  void push_whole(const std::string& host_id, const lease::State& state);
  void add_device(const record::Device& device, std::map<std::string, peer::HostView>& views);
  void add_request(const lease::State& state, const std::string& id, std::map<std::string, peer::HostView>& views);

  Push push_;
  std::set<std::string> subscribers_;
  std::map<std::string, std::set<std::string>> concerned_;  // device → hosts that it concerns, as last published
  std::map<std::string, std::string> request_hosts_;        // waiting request → host
};

}  // namespace usblease::cluster
