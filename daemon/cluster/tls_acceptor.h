// Listens, and keeps those who are not authenticated yet: few, for a short time, and nobody at another's cost. Private
// to daemon/cluster/.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>

#include "common/fd.h"
#include "common/main_loop.h"
#include "daemon/cluster/tls_connection.h"

namespace usblease::cluster {

// Strangers can bring about as many lines of log as they like: at most so many in a while.
class LogBudget {
 public:
  bool take();

 private:
  std::uint64_t since_ns_ = 0;
  int used_ = 0;
};

class TlsAcceptor {
 public:
  struct Events {
    // Both must give the connection events of its own, or abandon it, at once.
    std::function<void(std::shared_ptr<TlsConnection>)> host;
    std::function<void(std::shared_ptr<TlsConnection>)> join;
  };

  TlsAcceptor(UniqueFd listening, const TlsLimits& limits, std::size_t pending_max,
              std::function<std::shared_ptr<const TlsCredentials>()> credentials, TlsConnection::Check check,
              Events events);
  ~TlsAcceptor();
  TlsAcceptor(const TlsAcceptor&) = delete;
  TlsAcceptor& operator=(const TlsAcceptor&) = delete;

  [[nodiscard]] int fd() const { return listening_.get(); }
  [[nodiscard]] LogBudget& log_budget() { return log_budget_; }

 private:
  struct Pending {
    std::string address;
    std::shared_ptr<TlsConnection> connection;
  };
  void watch();
  void on_connections();
  void admit(UniqueFd fd, const sockaddr_storage& address);
  void make_room();
  std::shared_ptr<TlsConnection> take(const TlsConnection* connection);

  const UniqueFd listening_;
  const TlsLimits limits_;
  const std::size_t pending_max_;
  const std::function<std::shared_ptr<const TlsCredentials>()> credentials_;
  const TlsConnection::Check check_;
  const Events events_;
  std::list<Pending> pending_;  // oldest first
  LogBudget log_budget_;
  SourceHandle watch_;
  SourceHandle pause_;
};

}  // namespace usblease::cluster
