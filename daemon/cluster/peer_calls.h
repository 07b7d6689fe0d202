// What this host asks of others: questions over the connections that it dialed, and their answers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "daemon/cluster/transport.h"
#include "peer.pb.h"

namespace usblease::cluster {

inline constexpr std::size_t kCallsPerHostMax = 8192;  // unanswered

class PeerCalls {
 public:
  // nullptr: the connection was lost, so nobody knows what became of the question. Otherwise called until an answer
  // without `more`.
  using Answered = std::function<void(const peer::PeerAnswer*)>;
  using Pushed = std::function<void(const std::string& host_id, const peer::PeerAnswer&)>;
  struct CallId {
    std::string host_id;
    std::uint64_t id = 0;
    explicit operator bool() const { return id != 0; }
  };

  PeerCalls(Transport& transport, Pushed pushed) : transport_(transport), pushed_(std::move(pushed)) {}

  // From the transport.
  void up(const std::string& host_id);
  void down(const std::string& host_id);
  void answer(const std::string& host_id, const std::string& payload);

  // Fills in the id. False: not connected, or too much is unanswered; `answered` is never called then.
  CallId ask(const std::string& host_id, peer::PeerRequest request, Answered answered);
  // For what has no answer. False: not connected.
  bool tell(const std::string& host_id, peer::PeerRequest request);
  // Its answers are not wanted any more.
  void forget(const CallId& call);

  [[nodiscard]] bool connected(const std::string& host_id) const { return open_.contains(host_id); }
  [[nodiscard]] std::set<std::string> hosts() const;  // connected ones

 private:
  struct Open {
    std::map<std::uint64_t, Answered> unanswered;
    bool complained = false;
  };
  Transport& transport_;
  Pushed pushed_;
  std::uint64_t next_id_ = 1;
  std::map<std::string, Open> open_;
};

}  // namespace usblease::cluster
