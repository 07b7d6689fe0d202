#include "daemon/host/endpoint.h"

#include <fcntl.h>
#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "common/glib_ptr.h"
#include "common/main_loop.h"
#include "common/text.h"

namespace usblease::host {
namespace {

template <typename T>
using GObjectPtr = GPtr<T, g_object_unref>;

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr int kKeepIdleS = 10;  // an endpoint's host that dies is noticed after about 10 + 3 × 5 s without traffic
constexpr int kKeepIntervalS = 5;
constexpr int kKeepCount = 3;

using Connected = std::function<void(Result<UniqueFd>)>;

Result<GObjectPtr<GSocketConnectable>> parse_address(const std::string& address) {
  const auto bad = [&address] {
    return fail(ErrorCode::kBadInput, "\"" + escape_text(address) +
                                          "\" is not the address of an endpoint; write unix:/absolute/path or "
                                          "tcp:HOST:PORT");
  };
  if (address.rfind("unix:/", 0) == 0) {
    const std::string path = address.substr(5);
    constexpr std::size_t kPathMax = 107;  // sun_path
    if (path.size() > kPathMax) return bad();
    return GObjectPtr<GSocketConnectable>(G_SOCKET_CONNECTABLE(g_unix_socket_address_new(path.c_str())));
  }
  if (address.rfind("tcp:", 0) == 0) {
    GErrorOut error;
    GSocketConnectable* parsed = g_network_address_parse(address.c_str() + 4, 0, error.out());
    GObjectPtr<GSocketConnectable> target(parsed);
    if (!target) return bad();
    auto* parts = G_NETWORK_ADDRESS(target.get());
    if (g_network_address_get_port(parts) == 0 || *g_network_address_get_hostname(parts) == '\0') return bad();
    return target;
  }
  return bad();
}

// A descriptor of our own, since the one of GSocket dies with it.
Result<UniqueFd> take_descriptor(GSocketConnection* connection) {
  GSocket* socket = g_socket_connection_get_socket(connection);  // not ours
  UniqueFd fd(fcntl(g_socket_get_fd(socket), F_DUPFD_CLOEXEC, 0));
  if (!fd) return fail_errno("cannot duplicate the endpoint's descriptor", errno);
  if (g_socket_get_family(socket) == G_SOCKET_FAMILY_UNIX) return fd;
  const auto set = [&fd](int level, int option, int value) {
    return setsockopt(fd.get(), level, option, &value, sizeof value) == 0;
  };
  const bool all = set(IPPROTO_TCP, TCP_NODELAY, 1) && set(SOL_SOCKET, SO_KEEPALIVE, 1) &&
                   set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleS) && set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalS) &&
                   set(IPPROTO_TCP, TCP_KEEPCNT, kKeepCount);
  if (!all) return fail_errno("cannot set the options of the endpoint's stream", errno);
  return fd;
}

// Lives until GIO has called back, which it does also after a cancellation; `done` is empty once nobody waits.
struct Attempt {
  std::string address;
  std::uint32_t timeout_ms = 0;
  Connected done;
  bool timed_out = false;
  GObjectPtr<GSocketClient> client;
  GObjectPtr<GCancellable> cancellable;
  SourceHandle timer;
};
using AttemptPtr = std::shared_ptr<Attempt>;

Error describe_failure(const Attempt& attempt, const GErrorOut& error) {
  const std::string where = "the usbredir endpoint at " + escape_text(attempt.address);
  if (attempt.timed_out) {
    return {ErrorCode::kUnavailable, where + " does not answer within " + std::to_string(attempt.timeout_ms) +
                                         " ms; check that its host is up and that no firewall is between"};
  }
  return {ErrorCode::kUnavailable, "cannot connect to " + where + ": " + error.message() +
                                       "; start the server that offers the device (usbredirect, usbredirserver) there"};
}

void on_connected(GObject* source, GAsyncResult* result, gpointer data) {
  const std::unique_ptr<AttemptPtr> cell(static_cast<AttemptPtr*>(data));
  const AttemptPtr& attempt = *cell;
  GErrorOut error;
  const GObjectPtr<GSocketConnection> connection(
      g_socket_client_connect_finish(G_SOCKET_CLIENT(source), result, error.out()));
  attempt->timer.cancel();
  const Connected done = std::exchange(attempt->done, nullptr);
  if (!done) return;  // cancelled by its owner
  if (connection) {
    done(take_descriptor(connection.get()));
  } else {
    done(tl::unexpected(describe_failure(*attempt, error)));
  }
}

class ConnectCall : public EndpointCall {
 public:
  explicit ConnectCall(AttemptPtr attempt) : attempt_(std::move(attempt)) {}
  ~ConnectCall() override {
    attempt_->done = nullptr;
    attempt_->timer.cancel();
    if (attempt_->cancellable) g_cancellable_cancel(attempt_->cancellable.get());
  }

 private:
  AttemptPtr attempt_;
};

void start(const AttemptPtr& attempt, GSocketConnectable* target) {
  attempt->client.reset(g_socket_client_new());
  g_socket_client_set_enable_proxy(attempt->client.get(), FALSE);
  attempt->cancellable.reset(g_cancellable_new());
  auto* cell = std::make_unique<AttemptPtr>(attempt).release();  // given back in on_connected
  g_socket_client_connect_async(attempt->client.get(), target, attempt->cancellable.get(), on_connected, cell);
  // A weak reference: the timer lives in the attempt.
  attempt->timer = run_after(attempt->timeout_ms * kNsPerMs, [weak = std::weak_ptr(attempt)] {
    const auto alive = weak.lock();
    if (!alive) return;
    alive->timed_out = true;
    g_cancellable_cancel(alive->cancellable.get());
  });
}

}  // namespace

std::unique_ptr<EndpointCall> connect_endpoint(const std::string& address, std::uint32_t timeout_ms, Connected done) {
  auto attempt = std::make_shared<Attempt>();
  attempt->address = address;
  attempt->timeout_ms = timeout_ms;
  attempt->done = std::move(done);
  auto target = parse_address(address);
  if (target) {
    start(attempt, target->get());
  } else {
    attempt->timer = run_after(0, [weak = std::weak_ptr(attempt), error = target.error()] {
      const auto alive = weak.lock();
      if (!alive) return;
      if (const auto callback = std::exchange(alive->done, nullptr)) callback(tl::unexpected(error));
    });
  }
  return std::make_unique<ConnectCall>(std::move(attempt));
}

}  // namespace usblease::host
