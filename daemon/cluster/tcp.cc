#include "daemon/cluster/tcp.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::size_t kEndpointsMax = 8;  // of one name
constexpr int kBacklog = 128;

template <typename T>
using GObjectPtr = GPtr<T, g_object_unref>;

Endpoint endpoint_of(GInetAddress* address, std::uint16_t port) {
  Endpoint endpoint;
  const GObjectPtr<GSocketAddress> socket_address(g_inet_socket_address_new(address, port));
  const gssize size = g_socket_address_get_native_size(socket_address.get());
  if (size <= 0 || static_cast<std::size_t>(size) > sizeof(endpoint.address)) return endpoint;
  if (g_socket_address_to_native(socket_address.get(), &endpoint.address, sizeof(endpoint.address), nullptr) == FALSE)
    return endpoint;
  endpoint.size = static_cast<socklen_t>(size);
  endpoint.text = peer_address(endpoint.address).text;
  return endpoint;
}

Result<UniqueFd> bind_and_listen(const Endpoint& endpoint, bool every_family) {
  UniqueFd fd(socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto failed = [&](int error) -> tl::unexpected<Error> {
    const bool expected = error == EADDRINUSE || error == EADDRNOTAVAIL || error == EACCES || error == EAFNOSUPPORT;
    return fail(
        expected ? ErrorCode::kUnavailable : ErrorCode::kInternal,
        "cannot listen on " + endpoint.text + ": " + g_strerror(error) +
            (error == EADDRINUSE ? "; is another usbleased running? Else give [cluster] listen= another port" : ""));
  };
  if (!fd) return failed(errno);
  const int on = 1;
  const int only = every_family ? 0 : 1;
  // A restarted daemon must have its port at once.
  if (setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0) return failed(errno);
  if (endpoint.address.ss_family == AF_INET6 &&
      setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)) != 0)
    return failed(errno);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.size) != 0) return failed(errno);
  if (listen(fd.get(), kBacklog) != 0) return failed(errno);
  return fd;
}

struct HostAndPort {
  std::string host;
  std::uint16_t port = 0;
};

Result<HostAndPort> parse_address(const std::string& address) {
  GErrorOut error;
  const GObjectPtr<GSocketConnectable> parsed(g_network_address_parse(address.c_str(), kDefaultPort, error.out()));
  if (!parsed)
    return fail(ErrorCode::kBadInput,
                "\"" + escape_text(address.substr(0, 64)) + "\" is not HOST:PORT or [IPV6]:PORT: " + error.message());
  auto* const network = G_NETWORK_ADDRESS(parsed.get());
  return HostAndPort{g_network_address_get_hostname(network), g_network_address_get_port(network)};
}

// What connect(2) or the network said, as one of our reasons.
DownReason reason_of(int error) {
  if (error == ECONNREFUSED) return DownReason::kRefused;
  if (error == ECONNRESET) return DownReason::kClosed;
  if (error == EADDRNOTAVAIL || error == EAFNOSUPPORT || error == EINVAL) return DownReason::kUnresolved;
  return DownReason::kTimedOut;
}

}  // namespace

PeerAddress peer_address(const sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof(v4));
    inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return {text.data(), std::string(text.data()) + ":" + std::to_string(ntohs(v4.sin_port))};
  }
  sockaddr_in6 v6{};
  std::memcpy(&v6, &address, sizeof(v6));
  inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
  return {text.data(), "[" + std::string(text.data()) + "]:" + std::to_string(ntohs(v6.sin6_port))};
}

Result<std::uint16_t> local_port(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return fail_errno("cannot read a socket's address", errno);
  std::uint16_t port = 0;
  if (address.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof(v4));
    port = ntohs(v4.sin_port);
  } else {
    sockaddr_in6 v6{};
    std::memcpy(&v6, &address, sizeof(v6));
    port = ntohs(v6.sin6_port);
  }
  return port;
}

Result<UniqueFd> listen_tcp(const std::string& address) {
  const bool all = address.rfind("*:", 0) == 0;
  const auto parsed = parse_address(all ? "[::]:" + address.substr(2) : address);
  if (!parsed) return tl::unexpected(parsed.error());
  const GObjectPtr<GInetAddress> inet(g_inet_address_new_from_string(parsed->host.c_str()));
  if (!inet)
    return fail(ErrorCode::kBadInput, "cannot listen on \"" + escape_text(address.substr(0, 64)) +
                                          "\": give an IP address of this host, or * for all");
  auto fd = bind_and_listen(endpoint_of(inet.get(), parsed->port), all);
  // A kernel without IPv6.
  if (!fd && all) {
    const GObjectPtr<GInetAddress> any(g_inet_address_new_any(G_SOCKET_FAMILY_IPV4));
    auto v4 = bind_and_listen(endpoint_of(any.get(), parsed->port), false);
    if (v4) return v4;
  }
  return fd;
}

void prepare_tcp(int fd, std::uint32_t silent_ms) {
  const auto set = [fd](int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof(value)); };
  const int interval_s = std::max(1, static_cast<int>(silent_ms / 3'000));
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, interval_s);
  set(IPPROTO_TCP, TCP_KEEPINTVL, interval_s);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(silent_ms));
}

// --- Names --------------------------------------------------------------------------------------

struct Resolution::State {
  Done done;
  std::string address;
  std::uint16_t port = 0;
  GObjectPtr<GCancellable> cancellable{g_cancellable_new()};
};

Resolution::Resolution(const std::string& address, Done done) : state_(std::make_shared<State>()) {
  state_->done = std::move(done);
  state_->address = address;
  const auto later = [this](std::vector<Endpoint> endpoints, std::string why) {
    post([weak = std::weak_ptr(state_), endpoints = std::move(endpoints), why = std::move(why)] {
      if (const auto state = weak.lock()) std::exchange(state->done, {})(endpoints, why);
    });
  };
  const auto parsed = parse_address(address);
  if (!parsed) {
    later({}, parsed.error().message);
    return;
  }
  state_->port = parsed->port;
  const GObjectPtr<GInetAddress> inet(g_inet_address_new_from_string(parsed->host.c_str()));
  if (inet) {
    later({endpoint_of(inet.get(), parsed->port)}, "");
    return;
  }
  const GObjectPtr<GResolver> resolver(g_resolver_get_default());
  auto* const cell = std::make_unique<std::weak_ptr<State>>(state_).release();
  g_resolver_lookup_by_name_async(resolver.get(), parsed->host.c_str(), state_->cancellable.get(), looked_up, cell);
}

Resolution::~Resolution() { g_cancellable_cancel(state_->cancellable.get()); }

void Resolution::looked_up(GObject* resolver, GAsyncResult* result, gpointer data) {
  const std::unique_ptr<std::weak_ptr<State>> cell(static_cast<std::weak_ptr<State>*>(data));
  GErrorOut error;
  GList* const found = g_resolver_lookup_by_name_finish(G_RESOLVER(resolver), result, error.out());
  const auto state = cell->lock();
  std::vector<Endpoint> endpoints;
  for (GList* each = found; each != nullptr && state && endpoints.size() < kEndpointsMax; each = each->next) {
    endpoints.push_back(endpoint_of(G_INET_ADDRESS(each->data), state->port));
  }
  g_resolver_free_addresses(found);
  if (state) std::exchange(state->done, {})(std::move(endpoints), error ? error.message() : "it has no address");
}

// --- connect ------------------------------------------------------------------------------------

Connecting::Connecting(const Endpoint& endpoint, std::uint32_t timeout_ms, Done done) : done_(std::move(done)) {
  fd_.reset(socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int error = 0;
  if (!fd_ || connect(fd_.get(), reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.size) != 0)
    error = errno;
  if (error != 0 && error != EINPROGRESS) {
    timer_ = run_after(0, [this, error] { finish(error); });
    return;
  }
  timer_ = run_after(timeout_ms * kNsPerMs, [this] { finish(ETIMEDOUT); });
  watch_ = watch_fd(fd_.get(), G_IO_OUT, [this](GIOCondition /*ready*/) {
    int pending = 0;
    socklen_t size = sizeof(pending);
    if (getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &pending, &size) != 0) pending = errno;
    finish(pending);
  });
}

void Connecting::finish(int error) {
  watch_.cancel();
  timer_.cancel();
  if (error != 0) fd_.reset();
  // May destroy this.
  const Done done = std::move(done_);
  done(std::move(fd_), reason_of(error), error != 0 ? g_strerror(error) : "");
}

}  // namespace usblease::cluster
