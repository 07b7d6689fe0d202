// One attempt to reach a host: its addresses in order, what each means now, until one is authenticated. Private to
// daemon/cluster/.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/cluster/tcp.h"
#include "daemon/cluster/tls_connection.h"

namespace usblease::cluster {

class TlsDial {
 public:
  struct Setup {
    TlsRole role = TlsRole::kClient;
    std::shared_ptr<const TlsCredentials> credentials;
    TlsConnection::Check check;
    TlsLimits limits;
  };
  // Exactly one of the two, once, later; either may destroy the TlsDial.
  struct Events {
    std::function<void(std::shared_ptr<TlsConnection>)> ready;  // to be given events of its own at once
    // kRefused only if every address did; else the reason that says most.
    std::function<void(DownReason, const std::string& why)> failed;
  };

  TlsDial(std::vector<std::string> addresses, Setup setup, Events events);
  ~TlsDial();
  TlsDial(const TlsDial&) = delete;
  TlsDial& operator=(const TlsDial&) = delete;

 private:
  void next_address();
  void next_endpoint();
  void connected(UniqueFd fd, const std::string& peer);
  void note(DownReason reason, const std::string& where, const std::string& why);

  std::deque<std::string> addresses_;
  const Setup setup_;
  Events events_;
  std::string address_;
  std::deque<Endpoint> endpoints_;
  std::optional<DownReason> reason_;
  std::string why_;
  SourceHandle deadline_;
  std::unique_ptr<Resolution> resolution_;
  std::unique_ptr<Connecting> connecting_;
  std::shared_ptr<TlsConnection> connection_;
};

}  // namespace usblease::cluster
