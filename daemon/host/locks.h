// The named locks that commands on this host hold or wait for. A lock is leased as a device is (daemon/lease/keys.h),
// with the host of its holder as its home: so this is to a lock what EndpointHome is to an endpoint. What enforces the
// deadline is the client, `usblease lock`, by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/error.h"
#include "common/main_loop.h"
#include "daemon/cluster/link.h"
#include "daemon/host/acquisitions.h"
#include "daemon/host/home_file.h"
#include "daemon/host/session.h"

namespace usblease::host {

// All outlive the locks.
struct LocksContext {
  cluster::CoordinatorLink& link;
  HomeFile& home_file;
  Session& session;
  Acquisitions& acquisitions;
  std::function<void(command::Command)> give_back;  // submits a command until the coordinator has taken it
  std::uint32_t ttl_ms;
};

// Who waits for a lock or holds it. Called from the main loop.
struct LockClient {
  std::function<void(const command::Reply&)> waiting;                         // with what is in the way
  std::function<void(std::uint64_t token, std::uint64_t deadline_ns)> held;   // again with each later deadline
  std::function<void(command::Code code, const std::string& message)> ended;  // once: refused, lost, or unlocked
};

class Locks {
 public:
  explicit Locks(LocksContext context) : context_(std::move(context)) {}

  // `request` names one lock. A second client under the same request id takes the place of the first, which is told
  // nothing more. Returns the client's number.
  std::uint64_t lock(const command::Acquire& request, LockClient client);
  // What ran under it has ended: `done` when the lock is free. kNotFound: this host does not hold it under that id.
  void unlock(const std::string& request_id, std::function<void(Result<void>)> done);
  // That client went away without unlock(): nothing is renewed any more, and the lock is free once its token expired.
  void abandon(const std::string& request_id, std::uint64_t client_number);

  // From the coordinator.
  void on_record(const record::Device& lock);
  void fence(const lease::DeviceToken& lock);
  void set_deadline(const lease::DeviceToken& lock, std::uint64_t deadline_ns);

 private:
  struct Holder {
    command::Acquire request;
    LockClient client;
    std::uint64_t number = 0;
    record::Instance instance;
    std::uint64_t token = 0;  // 0: it waits
    bool armed = false;
    bool lost = false;  // its client was told, and has still to say that everything has ended
  };
  void granted(const std::string& request_id, const command::Reply& reply);
  void recorded(const std::string& request_id, std::uint64_t token, const Result<void>& stored);
  void tell_deadline(const Holder& holder);
  // Ends it for its client, who has to end what runs under it.
  void lose(const std::string& request_id, command::Code code, const std::string& why);
  void release(const Holder& holder, const std::string& why);
  void release_unclaimed(const std::string& lock);
  [[nodiscard]] Holder* holder_of(const lease::DeviceToken& lock);

  LocksContext context_;
  std::map<std::string, Holder> holders_;              // by request id
  std::map<std::string, std::uint64_t> dead_through_;  // by lock: no token up to this one is armed any more
  std::map<std::string, record::Device> records_;      // leased to this host, as last pushed
  // A lease that an earlier daemon's client holds: it asks again within the ttl, or its token has expired.
  std::map<std::string, SourceHandle> unclaimed_;
  std::uint64_t next_number_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace usblease::host
