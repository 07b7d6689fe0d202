#include "daemon/relay/control.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "common/log.h"
#include "common/unix_socket.h"
#include "daemon/relay/invocation.h"

namespace usblease::relay {
namespace {

constexpr int kMessagesMax = 16;  // at one wake-up: a daemon gone wild must not keep us from the streams

}  // namespace

Control::Control(UniqueFd listener, Hello hello, uid_t served_uid, Stream* stream)
    : listener_(std::move(listener)), hello_(std::move(hello)), served_uid_(served_uid), stream_(stream) {}

void Control::on_connect() {
  UniqueFd fresh(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fresh) return;  // gone again
  const auto peer = peer_credentials(fresh.get());
  if (!peer || (peer->uid != 0 && peer->uid != served_uid_)) {
    log::warning("refused a control connection of another user", {{"PEER", peer ? std::to_string(peer->uid) : "?"}});
    return;
  }
  connection_ = std::move(fresh);
  said_ = 0;
  report();
}

void Control::on_message() {
  for (int i = 0; i < kMessagesMax && connection_; ++i) {
    std::array<char, kControlMessageMax> buffer{};
    // MSG_TRUNC: the true length, so that a message over the bound is seen as one.
    const ssize_t got = recv(connection_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return connection_.reset();  // the daemon stopped; the deadline goes on without it
    ToRelay message;
    const auto length = static_cast<std::size_t>(got);
    if (length > buffer.size() || !message.ParseFromArray(buffer.data(), static_cast<int>(length))) {
      log::error("the daemon sent what is not a relay message; the connection is closed");
      return connection_.reset();
    }
    obey(message);
  }
}

void Control::obey(const ToRelay& message) {
  switch (message.body_case()) {
    case ToRelay::kRenew:
      if (names_our_lease(message.renew().token())) stream_->renew(message.renew().deadline_ns());
      return;
    case ToRelay::kRevoke:
      if (names_our_lease(message.revoke().token())) stream_->revoke();
      return;
    case ToRelay::kAck:
      if (!names_our_lease(message.ack().token())) return;
      if (!stream_->fenced_at_ns()) return log::warning("the daemon acknowledged a fence that was not reported");
      acknowledged_ = true;
      return;
    case ToRelay::BODY_NOT_SET:
      return;  // of a newer daemon
  }
}

bool Control::names_our_lease(std::uint64_t token) const {
  if (token == hello_.token()) return true;
  log::warning("ignored a message about another token", {{"TOKEN", std::to_string(token)}});
  return false;
}

// The facts in their order; they only ever grow in number, so a count says which of them are still to be told.
bool Control::fact(int index, ToDaemon* message) const {
  if (index-- == 0) {
    *message->mutable_hello() = hello_;
    message->mutable_hello()->set_deadline_ns(stream_->deadline_ns());
    return true;
  }
  if (stream_->connected() && index-- == 0) {
    message->mutable_connected()->set_endpoint_version(*stream_->connected());
    return true;
  }
  if (stream_->device() && index-- == 0) {
    message->mutable_device_seen()->set_vendor(stream_->device()->vendor);
    message->mutable_device_seen()->set_product(stream_->device()->product);
    return true;
  }
  if (stream_->ended() && index-- == 0) {
    message->mutable_ended()->set_why(stream_->ended()->why);
    message->mutable_ended()->set_detail(stream_->ended()->detail);
    message->mutable_ended()->set_at_boottime_ns(stream_->ended()->at_ns);
    message->mutable_ended()->set_last_packet_boottime_ns(stream_->ended()->last_packet_ns);
    return true;
  }
  if (stream_->fenced_at_ns() && index-- == 0) {
    message->mutable_fenced()->set_token(hello_.token());
    message->mutable_fenced()->set_at_boottime_ns(*stream_->fenced_at_ns());
    return true;
  }
  return false;
}

void Control::report() {
  while (connection_) {
    ToDaemon message;
    if (!fact(said_, &message) || !say(message)) return;
    ++said_;
  }
}

bool Control::say(const ToDaemon& message) {
  const std::string bytes = message.SerializeAsString();
  const ssize_t sent = send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(bytes.size())) return true;
  // Five small messages always fit: a daemon that does not take them is gone, and connects again if it is not.
  connection_.reset();
  return false;
}

}  // namespace usblease::relay
