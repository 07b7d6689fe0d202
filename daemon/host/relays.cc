#include "daemon/host/relays.h"

#include <glib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

#include "common/boottime.h"
#include "common/glib_ptr.h"
#include "common/log.h"
#include "common/text.h"
#include "common/unix_socket.h"
#include "daemon/host/relay_spawn.h"
#include "daemon/relay/invocation.h"

namespace usblease::host {
namespace {

constexpr std::size_t kDirectoryEntriesMax = 4096;
constexpr std::uint64_t kAdoptWaitNs = 2'000'000'000;
constexpr std::uint64_t kRetryNs = 100'000'000;
constexpr std::uint64_t kReconnectNs = 1'000'000'000;  // two daemons that quarrel over a relay must not spin

std::string socket_path(const RelayOptions& options, const std::string& device, std::uint64_t token) {
  return options.run_dir + "/relays/" + device + "." + std::to_string(token);
}

// DEVICE.TOKEN; a device name holds no dot.
std::optional<std::pair<std::string, std::uint64_t>> parse_socket_name(std::string_view name) {
  const auto dot = name.find('.');
  if (dot == std::string_view::npos || !is_device_name(name.substr(0, dot))) return std::nullopt;
  const std::string_view digits = name.substr(dot + 1);
  std::uint64_t token = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), token);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  if (std::to_string(token) != digits) return std::nullopt;  // no second name for one relay
  return std::pair{std::string(name.substr(0, dot)), token};
}

}  // namespace

// One relay: what the daemon wants of it, and the connection that tells it. A connection that breaks is made again as
// long as somebody listens; wishes are kept and told on the next one.
class Relays::Link {
 public:
  Link(Relays* relays, Key key) : relays_(relays), key_(std::move(key)) {}

  void connect();
  void renew(std::uint64_t deadline_ns);
  void revoke();
  void acknowledge();
  [[nodiscard]] bool awaits_hello() const { return !said_hello_; }
  [[nodiscard]] std::string path() const { return socket_path(relays_->options_, key_.first, key_.second); }

 private:
  void on_readable();
  void on_broken();
  void lose_later();
  void hear(const relay::ToDaemon& message);
  void hear_hello(const relay::Hello& hello);
  void tell_wishes();
  bool tell(const relay::ToRelay& message);

  Relays* relays_;
  Key key_;
  UniqueFd fd_;
  SourceHandle watch_;
  SourceHandle later_;
  std::uint64_t connected_at_ns_ = 0;
  std::uint64_t deadline_ns_ = 0;  // wished for; 0: none yet
  std::uint64_t deadline_told_ns_ = 0;
  bool revoke_wanted_ = false;
  bool revoke_told_ = false;
  bool ack_wanted_ = false;
  bool ack_told_ = false;
  bool said_hello_ = false;
  bool ended_reported_ = false;
  bool fenced_reported_ = false;
  bool connected_reported_ = false;
  bool device_reported_ = false;
};

void Relays::Link::connect() {
  auto fd = connect_unix(path(), 0, SOCK_SEQPACKET);
  if (!fd && fd.error().code == ErrorCode::kTimedOut) {  // its backlog is full: alive, and to be asked again
    later_ = run_after(kReconnectNs, [this] { connect(); });
    return;
  }
  if (!fd) return lose_later();
  fd_ = std::move(*fd);
  connected_at_ns_ = boottime_now_ns();
  deadline_told_ns_ = 0;
  revoke_told_ = ack_told_ = false;
  watch_ = watch_fd(fd_.get(), G_IO_IN, [this](GIOCondition) { on_readable(); });
  tell_wishes();
}

// Never inside the call that found it out: the caller does not expect its relay to vanish under it.
void Relays::Link::lose_later() {
  later_ = run_after(0, [this] { relays_->remove(key_, !fenced_reported_); });
}

void Relays::Link::on_readable() {
  std::array<char, relay::kControlMessageMax> buffer{};
  const ssize_t got = recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT | MSG_TRUNC);
  // A relay that died with words of ours unread resets the connection; its own last words come after the error.
  if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET)) return;
  if (got <= 0) return on_broken();
  relay::ToDaemon message;
  const auto length = static_cast<std::size_t>(got);
  if (length > buffer.size() || !message.ParseFromArray(buffer.data(), static_cast<int>(length))) {
    log::error("a relay sent what is not a relay message", {{"DEVICE", key_.first}});
    return on_broken();
  }
  hear(message);
}

void Relays::Link::on_broken() {
  watch_.cancel();
  fd_.reset();
  const bool quarrel = boottime_now_ns() - connected_at_ns_ < kReconnectNs;
  if (!quarrel) return connect();
  // The kernel closes a dead process's listener before its connection: a refusal now is proof of death, and asking
  // notices it at once. Only a connection to a living relay has to wait.
  const auto probe = connect_unix(path(), 0, SOCK_SEQPACKET);
  if (!probe && probe.error().code != ErrorCode::kTimedOut) return lose_later();
  later_ = run_after(kReconnectNs, [this] { connect(); });
}

void Relays::Link::hear(const relay::ToDaemon& message) {
  // A callback may destroy this link, or all of them: nothing is touched after one.
  const auto& [device, token] = key_;
  const RelayEvents& events = relays_->events_;
  switch (message.body_case()) {
    case relay::ToDaemon::kHello:
      return hear_hello(message.hello());
    case relay::ToDaemon::kConnected:
      if (std::exchange(connected_reported_, true)) return;
      if (events.connected) events.connected(device, token);
      return;
    case relay::ToDaemon::kDeviceSeen:
      if (std::exchange(device_reported_, true)) return;
      if (events.device_seen) events.device_seen(device, token, message.device_seen());
      return;
    case relay::ToDaemon::kEnded:
      if (std::exchange(ended_reported_, true)) return;
      if (events.ended) events.ended(device, token, message.ended());
      return;
    case relay::ToDaemon::kFenced:
      if (message.fenced().token() != token || std::exchange(fenced_reported_, true)) return;
      if (events.fenced) events.fenced(device, token);
      return;
    case relay::ToDaemon::BODY_NOT_SET:
      return;  // of a newer relay
  }
}

void Relays::Link::hear_hello(const relay::Hello& hello) {
  if (hello.version() != relay::kRelayProtocol || hello.device() != key_.first || hello.token() != key_.second) {
    log::error("the process on a relay's socket is not that relay; move the socket away",
               {{"DEVICE", key_.first}, {"TOKEN", std::to_string(key_.second)}});
    watch_.cancel();
    fd_.reset();
    return lose_later();
  }
  if (std::exchange(said_hello_, true)) return;  // after a reconnection
  relays_->finish_adopting();
  if (relays_->events_.hello) relays_->events_.hello(hello);
}

void Relays::Link::renew(std::uint64_t deadline_ns) {
  deadline_ns_ = std::max(deadline_ns_, deadline_ns);
  tell_wishes();
}

void Relays::Link::revoke() {
  revoke_wanted_ = true;
  tell_wishes();
}

void Relays::Link::acknowledge() {
  ack_wanted_ = true;
  tell_wishes();
}

// What has not been told on this connection. When the relay does not read (it is frozen), again a little later.
void Relays::Link::tell_wishes() {
  if (!fd_) return;
  const std::uint64_t token = key_.second;
  relay::ToRelay message;
  bool told = true;
  if (revoke_wanted_ && !revoke_told_) {
    message.mutable_revoke()->set_token(token);
    told = revoke_told_ = tell(message);
  }
  if (told && deadline_ns_ > deadline_told_ns_ && !revoke_wanted_) {
    message.mutable_renew()->set_token(token);
    message.mutable_renew()->set_deadline_ns(deadline_ns_);
    told = tell(message);
    if (told) deadline_told_ns_ = deadline_ns_;
  }
  if (told && ack_wanted_ && !ack_told_) {
    message.mutable_ack()->set_token(token);
    told = ack_told_ = tell(message);
  }
  if (!told) later_ = run_after(kRetryNs, [this] { tell_wishes(); });
}

bool Relays::Link::tell(const relay::ToRelay& message) {
  const std::string bytes = message.SerializeAsString();
  const ssize_t sent = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  // Any error but a full buffer shows as the end of the connection, to on_readable.
  return sent >= 0 || (errno != EAGAIN && errno != EINTR);
}

Relays::Relays(RelayOptions options, RelayEvents events) : options_(std::move(options)), events_(std::move(events)) {}

Relays::~Relays() = default;

Relays::Link* Relays::find(const std::string& device, std::uint64_t token) const {
  const auto at = links_.find({device, token});
  return at == links_.end() ? nullptr : at->second.get();
}

Relays::Link& Relays::add_link(const Key& key) {
  auto& link = links_[key];
  link = std::make_unique<Link>(this, key);
  return *link;
}

// The socket of a relay that is gone. `lost`: it had not said Fenced. By value: the key may live in the link.
void Relays::remove(Key key, bool lost) {
  const auto at = links_.find(key);
  if (at == links_.end()) return;
  const std::string path = at->second->path();
  links_.erase(at);
  // Somebody may listen there who is no relay of ours (hear_hello): not ours to remove.
  const auto alive = connect_unix(path, 0, SOCK_SEQPACKET);
  if (!alive && alive.error().code == ErrorCode::kUnavailable && unlink(path.c_str()) != 0 && errno != ENOENT) {
    log::warning("cannot remove the socket of a dead relay", {{"DEVICE", key.first}, {"ERROR", g_strerror(errno)}});
  }
  finish_adopting();
  if (lost && events_.lost) events_.lost(key.first, key.second);
}

Result<std::string> Relays::prepare_directory() const {
  const std::string directory = options_.run_dir + "/relays";
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("cannot make " + directory, errno);
  return directory;
}

void Relays::adopt(std::function<void()> done) {
  adopted_ = std::move(done);
  const std::string path = options_.run_dir + "/relays";
  const GPtr<GDir, g_dir_close> directory(g_dir_open(path.c_str(), 0, nullptr));  // absent: there are none
  for (std::size_t count = 0; directory && count < kDirectoryEntriesMax; ++count) {
    const char* name = g_dir_read_name(directory.get());
    if (name == nullptr) break;
    const auto key = parse_socket_name(name);
    if (!key) {
      log::warning("ignored a file in " + path + " that is no relay's socket: " + escape_text(name));
    } else if (find(key->first, key->second) == nullptr) {
      add_link(*key).connect();
    }
  }
  // A relay that is frozen says no hello: it stays in the list, but nobody waits for it.
  adopt_timeout_ = run_after(kAdoptWaitNs, [this] {
    for (const auto& [key, link] : links_) {
      if (!link->awaits_hello()) continue;
      log::warning("a relay does not say hello; is it stopped?", {{"DEVICE", key.first}});
    }
    if (const auto callback = std::exchange(adopted_, nullptr)) callback();
  });
  finish_adopting();
}

void Relays::finish_adopting() {
  if (!adopted_) return;
  for (const auto& [key, link] : links_) {
    if (link->awaits_hello()) return;
  }
  adopt_timeout_ = run_after(0, [this] {
    if (const auto callback = std::exchange(adopted_, nullptr)) callback();
  });
}

Result<void> Relays::spawn(RelayStart start) {
  if (find(start.device, start.token) != nullptr) {
    return fail(ErrorCode::kRefused,
                "a relay for " + start.device + " and token " + std::to_string(start.token) + " runs already");
  }
  if (const auto directory = prepare_directory(); !directory) return tl::unexpected(directory.error());
  auto listener = listen_unix(socket_path(options_, start.device, start.token), 0600, SOCK_SEQPACKET);
  if (!listener) return tl::unexpected(listener.error());
  const std::vector<std::string> arguments = {options_.relay_path,
                                              "--device",
                                              start.device,
                                              "--token",
                                              std::to_string(start.token),
                                              "--guest",
                                              start.guest_uuid,
                                              "--instance",
                                              std::to_string(start.instance),
                                              "--peer-pid",
                                              std::to_string(start.peer_pid),
                                              "--deadline-ns",
                                              std::to_string(start.deadline_ns),
                                              "--uid",
                                              std::to_string(options_.uid),
                                              "--gid",
                                              std::to_string(options_.gid)};
  auto started =
      spawn_relay_process(arguments, {std::move(start.guest), std::move(start.endpoint), std::move(*listener)});
  if (!started) {
    (void)unlink(socket_path(options_, start.device, start.token).c_str());
    return started;
  }
  add_link({start.device, start.token}).connect();
  return {};
}

void Relays::renew(const std::string& device, std::uint64_t token, std::uint64_t deadline_ns) {
  if (auto* link = find(device, token)) link->renew(deadline_ns);
}

void Relays::revoke(const std::string& device, std::uint64_t token) {
  if (auto* link = find(device, token)) link->revoke();
}

void Relays::acknowledge(const std::string& device, std::uint64_t token) {
  if (auto* link = find(device, token)) link->acknowledge();
}

bool Relays::has(const std::string& device, std::uint64_t token) const { return find(device, token) != nullptr; }

bool Relays::has_any(const std::string& device) const {
  const auto first = links_.lower_bound({device, 0});
  return first != links_.end() && first->first.first == device;
}

std::size_t Relays::count() const { return links_.size(); }

}  // namespace usblease::host
