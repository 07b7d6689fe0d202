// One watch on etcd: a stream that is opened again, at the next revision and at whatever member is fit, when it breaks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/store/etcd_endpoints.h"
#include "daemon/store/etcd_loop.h"
#include "daemon/store/watch_hub.h"

namespace usblease::store {

// On the loop's thread; make_shared, because a stream outlives whoever cancels it by a moment.
class EtcdWatch : public std::enable_shared_from_this<EtcdWatch> {
 public:
  // `deliver` hands updates to the main loop; its argument is to be posted to the loop after they have run there: only
  // then more is read, so that a slow main loop holds back the member and not our memory.
  using Deliver = std::function<void(std::vector<WatchUpdate> updates, std::function<void()> consumed)>;

  EtcdWatch(EtcdLoop& loop, EtcdEndpoints& endpoints, std::string key_prefix, const std::string& prefix,
            std::uint64_t from_revision, Deliver deliver);

  // Opens the stream, if there is none and a member is fit. Called again when that has changed.
  void open();
  void cancel();

 private:
  struct Stream;

  void created(const std::shared_ptr<Stream>& stream);
  void read(const std::shared_ptr<Stream>& stream);
  void take(const std::shared_ptr<Stream>& stream);
  void finish(const std::shared_ptr<Stream>& stream);
  void finished(const std::shared_ptr<Stream>& stream);
  void end_compacted(std::uint64_t revision);

  EtcdLoop& loop_;
  EtcdEndpoints& endpoints_;
  const std::string key_prefix_;
  const std::string range_;
  const Deliver deliver_;
  std::uint64_t next_revision_;
  std::shared_ptr<Stream> stream_;
  bool ended_ = false;
  EtcdTimer again_;
};

}  // namespace usblease::store
