// Keeps a connection to libvirt up, the one that hears events: connects, hears that it broke, connects again. A thread
// of its own, because connecting blocks for as long as libvirtd does not answer. Lends further connections for calls,
// since one connection serves one call at a time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "daemon/host/libvirt_session.h"

namespace usblease::host {

// On the link's thread, but for the session's events: see SessionEvents. `generation` counts the connections.
struct LinkEvents {
  std::function<void(std::uint64_t generation)> up;
  std::function<void(std::string why)> down;  // also when the first attempt failed; once until the next `up`
  std::function<void(std::uint64_t generation, std::string uuid)> guest_changed;
  std::function<void(std::uint64_t generation, std::string uuid, std::string device)> device_removed;
};

class LibvirtLink : public std::enable_shared_from_this<LibvirtLink> {
 public:
  static constexpr std::uint64_t kBackoffLeastMs = 200;
  static constexpr std::uint64_t kBackoffMostMs = 5000;
  static constexpr std::uint64_t kStopWaitMs = 1000;
  static constexpr std::size_t kIdleMax = 4;

  static std::shared_ptr<LibvirtLink> make(std::string uri, std::string run_dir, LinkEvents events);

  void start();
  // No event after this one returned, but for those under way. Waits up to kStopWaitMs for the thread; one that still
  // hangs in libvirt then is left to itself.
  void request_stop();
  void stop();

  // The connection that hears events, for the event lane. Null: it is not the present one.
  std::shared_ptr<LibvirtSession> session(std::uint64_t generation);

  // A connection for one call, from any thread; may block. kUnavailable: libvirt is away.
  Result<std::unique_ptr<LibvirtSession>> borrow();
  void give_back(std::unique_ptr<LibvirtSession> session);

  // From any thread: the connection that hears events is of no use any more.
  void give_up(std::uint64_t generation, std::string why);

  // From any thread: the connection proved to be of use, so that the next break is followed by a quick attempt.
  void settle();

 private:
  LibvirtLink(std::string uri, std::string run_dir, LinkEvents events)
      : uri_(std::move(uri)), run_dir_(std::move(run_dir)), events_(std::move(events)) {}
  void run();
  Result<void> connect();
  void wait_until_broken();
  bool wait_before_retry();  // false: stop

  const std::string uri_;
  const std::string run_dir_;
  const LinkEvents events_;
  const std::shared_ptr<Removals> removals_ = std::make_shared<Removals>();
  std::mutex mutex_;
  std::condition_variable changed_;
  // All under mutex_:
  std::shared_ptr<LibvirtSession> session_;
  std::vector<std::unique_ptr<LibvirtSession>> idle_;  // at most kIdleMax
  std::uint64_t generation_ = 0;
  std::string broken_;  // why; empty: not broken
  std::uint64_t backoff_ms_ = kBackoffLeastMs;
  bool stopping_ = false;
  bool ended_ = false;
  std::thread thread_;  // of the owner of start and stop
};

}  // namespace usblease::host
