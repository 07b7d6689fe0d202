// Requests that somebody on this host waits for: sends them, repeats them, and ends each one exactly once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/main_loop.h"
#include "daemon/cluster/link.h"

namespace usblease::host {

class Acquisitions {
 public:
  using Progress = std::function<void(const command::Reply&)>;  // CODE_QUEUED, with what is in the way now
  using Done = std::function<void(const command::Reply&)>;      // CODE_OK with grants, or why not

  // `give_back` submits a command until the coordinator has taken it.
  Acquisitions(cluster::CoordinatorLink& link, std::function<void(command::Command)> give_back)
      : link_(link), give_back_(std::move(give_back)) {}

  // A request that waits already under the same id gets the new callbacks; the old ones are dropped.
  void acquire(command::Acquire request, Progress progress, Done done);
  // Nobody waits any more: leaves the queue, and gives back what was granted meanwhile.
  void abandon(const std::string& request_id, const std::string& why);
  // The guest's start is over: whatever it waits for ends, and is not asked for again.
  void start_ended(const record::Start& start);
  // The coordinator is another one: asks it about all that wait, because the old one's last word may be lost.
  void repeat();
  // The coordinator says that a request which had waited has its answer.
  void settled(const std::string& request_id, const command::Reply& reply);

  // Undoes a request, whatever became of it: leaves the queue, and gives back what was granted under its id.
  void take_back(const command::Acquire& request, const std::string& why);

  [[nodiscard]] bool waits(const std::string& request_id) const { return waiting_.contains(request_id); }

 private:
  struct Waiting {
    command::Acquire request;
    Progress progress;
    Done done;
    SourceHandle repeat;
    std::uint64_t ends_ns = 0;
    bool in_flight = false;
  };
  void send(const std::string& request_id);
  void on_reply(const std::string& request_id, const command::Reply& reply);
  void finish(const std::string& request_id, const command::Reply& reply);
  void give_up(const std::string& request_id);

  cluster::CoordinatorLink& link_;
  std::function<void(command::Command)> give_back_;
  std::map<std::string, Waiting> waiting_;
  // Ended while a repeat was on its way: if that repeat began anew, it is undone.
  std::map<std::string, command::Acquire> ended_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
