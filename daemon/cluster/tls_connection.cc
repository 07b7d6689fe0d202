#include "daemon/cluster/tls_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "common/text.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::size_t kRecordBytes = 16 * 1024;
// So many records of one peer are read before the others have their turn.
constexpr int kRecordsPerTurn = 8;
// A peer that does not fetch its answers is not asked for more questions.
constexpr std::size_t kOutputPauseBytes = std::size_t{512} * 1024;
constexpr std::size_t kKeptCapacityBytes = 65'536;
constexpr std::uint32_t kGoodbyeMs = 1'000;
constexpr std::size_t kDrainBytesMax = std::size_t{8} * 1024 * 1024;

// What an alert of the peer says about us.
std::pair<DownReason, std::string> meaning_of(gnutls_alert_description_t alert) {
  switch (alert) {
    case GNUTLS_A_ACCESS_DENIED:
      return {DownReason::kForbidden, "it says that this host is not a member of the cluster any more"};
    case GNUTLS_A_UNKNOWN_CA:
      return {DownReason::kUntrusted, "it does not know the CA of this host's certificate: another cluster?"};
    case GNUTLS_A_CERTIFICATE_EXPIRED:
      return {DownReason::kUntrusted, "it says that this host's certificate is not valid now; are the clocks right?"};
    case GNUTLS_A_BAD_CERTIFICATE:
      return {DownReason::kUntrusted, "it does not accept this host's certificate; its log says why"};
    case GNUTLS_A_CERTIFICATE_REQUIRED:
      return {DownReason::kUntrusted, "it asks for a certificate"};
    case GNUTLS_A_NO_APPLICATION_PROTOCOL:
    case GNUTLS_A_PROTOCOL_VERSION:
      return {DownReason::kUntrusted, "it does not speak this version of usblease's protocol"};
    default: {
      const char* const name = gnutls_alert_get_name(alert);
      return {DownReason::kUntrusted, std::string("it ended TLS: ") + (name != nullptr ? name : "unknown alert")};
    }
  }
}

bool is_interrupted(int error) { return error == GNUTLS_E_AGAIN || error == GNUTLS_E_INTERRUPTED; }

}  // namespace

Result<std::shared_ptr<TlsConnection>> TlsConnection::open(UniqueFd fd, TlsRole role,
                                                           std::shared_ptr<const TlsCredentials> credentials,
                                                           Check check, const TlsLimits& limits, std::string peer) {
  auto session = credentials->make_session(role, verify_peer);
  if (!session) return tl::unexpected(session.error());
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): private constructor
  std::shared_ptr<TlsConnection> made(
      new TlsConnection(std::move(fd), role, std::move(credentials), std::move(check), limits, std::move(peer)));
  made->session_ = std::move(*session);
  const gnutls_session_t raw = made->session_.get();
  gnutls_session_set_ptr(raw, made.get());
  gnutls_transport_set_ptr(raw, made.get());
  gnutls_transport_set_pull_function(raw, pull);
  gnutls_transport_set_push_function(raw, push);
  gnutls_transport_set_pull_timeout_function(raw, wait_readable);
  made->set_deadline(limits.handshake_ms,
                     "it did not authenticate within " + std::to_string(limits.handshake_ms) + " ms");
  made->update_watch();
  return made;
}

TlsConnection::TlsConnection(UniqueFd fd, TlsRole role, std::shared_ptr<const TlsCredentials> credentials, Check check,
                             const TlsLimits& limits, std::string peer)
    : fd_(std::move(fd)),
      role_(role),
      credentials_(std::move(credentials)),
      check_(std::move(check)),
      limits_(limits),
      peer_(std::move(peer)) {}

TlsConnection::~TlsConnection() = default;

// --- What GnuTLS calls --------------------------------------------------------------------------

ssize_t TlsConnection::pull(gnutls_transport_ptr_t self, void* data, std::size_t size) {
  auto& connection = *static_cast<TlsConnection*>(self);
  const ssize_t count = recv(connection.fd_.get(), data, size, MSG_DONTWAIT);
  if (count < 0) {
    connection.io_errno_ = errno;
    gnutls_transport_set_errno(connection.session_.get(), errno);
  } else if (count == 0) {
    connection.io_errno_ = 0;
  }
  return count;
}

ssize_t TlsConnection::push(gnutls_transport_ptr_t self, const void* data, std::size_t size) {
  auto& connection = *static_cast<TlsConnection*>(self);
  const ssize_t count = ::send(connection.fd_.get(), data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count < 0) {
    connection.io_errno_ = errno;
    gnutls_transport_set_errno(connection.session_.get(), errno);
  }
  return count;
}

int TlsConnection::wait_readable(gnutls_transport_ptr_t self, unsigned /*ms: never waits*/) {
  pollfd poll_fd{static_cast<TlsConnection*>(self)->fd_.get(), POLLIN, 0};
  return poll(&poll_fd, 1, 0);
}

int TlsConnection::verify_peer(gnutls_session_t session) {
  return static_cast<TlsConnection*>(gnutls_session_get_ptr(session))->verify();
}

int TlsConnection::verify() {
  auto verified = credentials_->verify(session_.get(), role_ != TlsRole::kServer);
  if (verified && check_) {
    if (auto refusal = check_(verified->host)) verified = tl::unexpected(std::move(*refusal));
  }
  if (!verified) {
    refusal_ = std::move(verified.error());
    return GNUTLS_E_CERTIFICATE_ERROR;
  }
  verified_ = std::move(*verified);
  verified_set_ = true;
  return 0;
}

// --- Handshake ----------------------------------------------------------------------------------

void TlsConnection::on_ready(GIOCondition condition) {
  const auto self = shared_from_this();
  switch (stage_) {
    case Stage::kHandshake:
      handshake();
      break;
    case Stage::kWelcome:
    case Stage::kOpen:
    case Stage::kClosing:
      if ((condition & G_IO_OUT) != 0) {
        blocked_ = false;
        flush();
      }
      if (stage_ == Stage::kDraining || stage_ == Stage::kEnded) break;
      if (!paused()) {
        receive();
      } else if ((condition & (G_IO_HUP | G_IO_ERR)) != 0) {
        cut(DownReason::kReset, "it ended the connection without a goodbye");
      }
      break;
    case Stage::kDraining:
      drain();
      break;
    case Stage::kEnded:
      break;
  }
  update_watch();
}

void TlsConnection::handshake() {
  const int error = gnutls_handshake(session_.get());
  if (error == 0) return handshake_done();
  if (is_interrupted(error) || gnutls_error_is_fatal(error) == 0) return;
  failed(error);
}

void TlsConnection::handshake_done() {
  gnutls_datum_t chosen{};
  const bool named = gnutls_alpn_get_selected_protocol(session_.get(), &chosen) >= 0;
  const std::string_view name(reinterpret_cast<const char*>(chosen.data), named ? chosen.size : 0);
  joining_ = name == kAlpnJoin;
  const bool known = joining_ ? role_ != TlsRole::kClient : name == kAlpnHosts && role_ != TlsRole::kJoinClient;
  if (!known) return refuse(GNUTLS_A_NO_APPLICATION_PROTOCOL, "it does not speak this version of usblease's protocol");
  // Only who joins may be unknown. GnuTLS has seen to it; what depends on it so much is looked at twice.
  if (!verified_set_ && !(joining_ && role_ == TlsRole::kServer))
    return refuse(GNUTLS_A_CERTIFICATE_REQUIRED, "it has shown no certificate");
  if (role_ != TlsRole::kServer) {
    stage_ = Stage::kWelcome;
    // What came with the end of the handshake may be in GnuTLS's buffer already.
    return schedule_receive();
  }
  if (joining_) {
    verified_ = {};
    reader_ = FrameReader(kJoinPayloadMax);
  } else {
    set_deadline(0, "");
  }
  stage_ = Stage::kOpen;
  queue("");
  flush();
  schedule_receive();
  if (stage_ == Stage::kOpen) tell_ready();
}

void TlsConnection::tell_ready() {
  const auto events = events_;
  if (events) events->ready();
}

// --- In -----------------------------------------------------------------------------------------

bool TlsConnection::paused() const { return stage_ == Stage::kOpen && queued_bytes() > kOutputPauseBytes; }

void TlsConnection::schedule_receive() {
  if (std::exchange(receive_posted_, true)) return;
  post([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->receive_posted_ = false;
    const bool reads =
        self->stage_ == Stage::kWelcome || self->stage_ == Stage::kOpen || self->stage_ == Stage::kClosing;
    if (reads && !self->paused()) self->receive();
    self->update_watch();
  });
}

void TlsConnection::receive() {
  std::array<char, kRecordBytes> chunk;
  for (int records = 0; records < kRecordsPerTurn; ++records) {
    if (stage_ == Stage::kDraining || stage_ == Stage::kEnded || paused()) return;
    const ssize_t count = gnutls_record_recv(session_.get(), chunk.data(), chunk.size());
    if (count > 0) {
      quiet_ticks_ = 0;
      if (stage_ == Stage::kClosing) continue;
      reader_.push({chunk.data(), static_cast<std::size_t>(count)});
      take_frames();
    } else if (count == 0) {
      return end(DownReason::kClosed, "it closed the connection");
    } else if (is_interrupted(static_cast<int>(count))) {
      return;
    } else if (gnutls_error_is_fatal(static_cast<int>(count)) != 0) {
      return failed(static_cast<int>(count));
    }
  }
  if (gnutls_record_check_pending(session_.get()) > 0) schedule_receive();
}

void TlsConnection::take_frames() {
  while (stage_ == Stage::kWelcome || stage_ == Stage::kOpen) {
    auto payload = reader_.next();
    if (!payload) return refuse(GNUTLS_A_DECODE_ERROR, "it broke the framing: " + payload.error().message);
    if (!payload->has_value()) return;
    take(std::move(**payload));
  }
}

void TlsConnection::take(std::string payload) {
  if (stage_ == Stage::kWelcome) {
    if (!payload.empty()) return refuse(GNUTLS_A_UNEXPECTED_MESSAGE, "its first frame is not the welcome");
    stage_ = Stage::kOpen;
    set_deadline(0, "");
    tell_ready();
  } else if (!payload.empty()) {
    const auto events = events_;
    if (events) events->frame(std::move(payload));
  } else if (role_ == TlsRole::kServer) {
    send("");
  }
}

// --- Out ----------------------------------------------------------------------------------------

bool TlsConnection::send(const std::string& payload) {
  if (stage_ != Stage::kOpen || payload.size() > kFramePayloadMax) return false;
  if (queued_bytes() + kFrameHeaderBytes + payload.size() > limits_.output_bytes_max) return false;
  queue(payload);
  if (!blocked_) flush();
  update_watch();
  return stage_ == Stage::kOpen;
}

void TlsConnection::queue(const std::string& payload) {
  output_ += encode_frame(payload);
  unsent_ticks_ = 0;
}

void TlsConnection::flush() {
  while (!blocked_ && queued_bytes() > 0) {
    // A record that was not taken whole is repeated without its bytes: GnuTLS has kept them.
    const ssize_t count = unfinished_ ? gnutls_record_send(session_.get(), nullptr, 0)
                                      : gnutls_record_send(session_.get(), output_.data() + output_sent_,
                                                           std::min(queued_bytes(), kRecordBytes));
    if (count >= 0) {
      output_sent_ += static_cast<std::size_t>(count);
      unfinished_ = false;
      stalled_ticks_ = 0;
    } else if (is_interrupted(static_cast<int>(count))) {
      unfinished_ = true;
      blocked_ = count == GNUTLS_E_AGAIN;
    } else {
      return flush_failed(static_cast<int>(count));
    }
  }
  if (queued_bytes() == 0) {
    output_.clear();
    output_sent_ = 0;
    if (output_.capacity() > kKeptCapacityBytes) output_ = std::string();
    if (stage_ == Stage::kClosing) say_goodbye();
  } else if (output_sent_ > output_.size() / 2) {
    output_.erase(0, output_sent_);
    output_sent_ = 0;
  }
  if (stage_ == Stage::kOpen && !paused() && gnutls_record_check_pending(session_.get()) > 0) schedule_receive();
}

// The peer may have said why before it hung up: that is still to be read.
void TlsConnection::flush_failed(int error) {
  output_.clear();
  output_sent_ = 0;
  unfinished_ = false;
  post([weak = weak_from_this(), error, io_errno = io_errno_] {
    const auto self = weak.lock();
    if (!self || self->stage_ == Stage::kDraining || self->stage_ == Stage::kEnded) return;
    self->receive();
    if (self->stage_ == Stage::kDraining || self->stage_ == Stage::kEnded) return;
    self->io_errno_ = io_errno;
    self->failed(error);
  });
}

// --- Signs of life ------------------------------------------------------------------------------

void TlsConnection::tick() {
  // Ticks are counted, not seconds: if this process was frozen itself, what came meanwhile is read before anybody is
  // given up.
  if (stage_ != Stage::kOpen) return;
  const std::string span = std::to_string(limits_.silent_ms) + " ms";
  if (blocked_ && ++stalled_ticks_ > kTicksPerSilence)
    return cut(DownReason::kTimedOut, "it has read nothing of what was sent to it for " + span);
  if (joining_) return;
  if (!paused() && ++quiet_ticks_ > kTicksPerSilence)
    return cut(DownReason::kTimedOut, "it gave no sign of life for " + span);
  if (role_ != TlsRole::kServer && (++unsent_ticks_ > 1 || quiet_ticks_ > 1)) send("");
}

void TlsConnection::set_deadline(std::uint32_t ms, std::string why) {
  if (ms == 0) return deadline_.cancel();
  deadline_ = run_after(ms * kNsPerMs, [this, why = std::move(why)] {
    const auto self = shared_from_this();
    cut(DownReason::kTimedOut, why);
  });
}

// --- The end ------------------------------------------------------------------------------------

void TlsConnection::failed(int error) {
  if (error == GNUTLS_E_FATAL_ALERT_RECEIVED) {
    auto [reason, why] = meaning_of(gnutls_alert_get(session_.get()));
    return end(reason, std::move(why));
  }
  const bool handshaking = stage_ == Stage::kHandshake || stage_ == Stage::kWelcome;
  if (error == GNUTLS_E_PREMATURE_TERMINATION || error == GNUTLS_E_PULL_ERROR || error == GNUTLS_E_PUSH_ERROR) {
    if (io_errno_ == ETIMEDOUT || io_errno_ == EHOSTUNREACH || io_errno_ == ENETUNREACH)
      return end(DownReason::kTimedOut, std::string("its host does not answer: ") + g_strerror(io_errno_));
    // Who hangs up on a stranger need not be dead: a full table of strangers does that too.
    return handshaking ? end(DownReason::kClosed, "it hung up before it was authenticated")
                       : end(DownReason::kReset, "it ended the connection without a goodbye");
  }
  if (refusal_) return refuse(refusal_->alert, refusal_->why);
  switch (error) {
    case GNUTLS_E_NO_APPLICATION_PROTOCOL:
      return refuse(GNUTLS_A_NO_APPLICATION_PROTOCOL, "it does not speak this version of usblease's protocol");
    case GNUTLS_E_CERTIFICATE_REQUIRED:
      return refuse(GNUTLS_A_CERTIFICATE_REQUIRED, "it has shown no certificate");
    case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
    case GNUTLS_E_NO_CIPHER_SUITES:  // every TLS 1.3 has one in common with us
      return refuse(GNUTLS_A_PROTOCOL_VERSION, "it does not speak TLS 1.3");
    default: {
      const int alert = gnutls_error_to_alert(error, nullptr);
      return refuse(alert >= 0 ? static_cast<gnutls_alert_description_t>(alert) : GNUTLS_A_INTERNAL_ERROR,
                    std::string("TLS failed: ") + gnutls_strerror(error));
    }
  }
}

void TlsConnection::refuse(gnutls_alert_description_t alert, std::string why) {
  if (stage_ == Stage::kDraining || stage_ == Stage::kEnded) return;
  gnutls_alert_send(session_.get(), GNUTLS_AL_FATAL, alert);
  shutdown(fd_.get(), SHUT_WR);
  stage_ = Stage::kDraining;
  end_reason_ = DownReason::kUntrusted;
  end_why_ = std::move(why);
  set_deadline(kGoodbyeMs, "");
  update_watch();
}

void TlsConnection::close(std::string why) {
  if (stage_ != Stage::kOpen) return cut(DownReason::kClosed, std::move(why));
  stage_ = Stage::kClosing;
  end_reason_ = DownReason::kClosed;
  end_why_ = std::move(why);
  set_deadline(kGoodbyeMs, "");
  if (!blocked_) flush();
  update_watch();
}

void TlsConnection::say_goodbye() {
  gnutls_bye(session_.get(), GNUTLS_SHUT_WR);
  shutdown(fd_.get(), SHUT_WR);
  stage_ = Stage::kDraining;
}

void TlsConnection::drain() {
  std::array<char, kRecordBytes> chunk;
  const ssize_t count = recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count > 0) drained_ += static_cast<std::size_t>(count);
  if (count <= 0 || drained_ > kDrainBytesMax) end(end_reason_, end_why_);
}

void TlsConnection::cut(DownReason reason, std::string why) {
  const bool said = stage_ == Stage::kDraining || stage_ == Stage::kClosing;
  end(said ? end_reason_ : reason, said ? end_why_ : std::move(why));
}

void TlsConnection::end(DownReason reason, std::string why) {
  if (stage_ == Stage::kEnded) return;
  stage_ = Stage::kEnded;
  watch_.cancel();
  deadline_.cancel();
  fd_.reset();
  output_ = std::string();
  output_sent_ = 0;
  // From the main loop, because this may be in the middle of a call of the one who wants to know.
  post([self = shared_from_this(), reason, why = std::move(why)] {
    const auto events = std::exchange(self->events_, nullptr);
    if (events) events->ended(reason, why);
  });
}

void TlsConnection::abandon() {
  events_ = nullptr;
  if (stage_ == Stage::kOpen && !blocked_) gnutls_bye(session_.get(), GNUTLS_SHUT_WR);
  end(DownReason::kClosed, "");
}

void TlsConnection::update_watch() {
  int wanted = -1;
  switch (stage_) {
    case Stage::kHandshake:
      wanted = gnutls_record_get_direction(session_.get()) != 0 || (role_ != TlsRole::kServer && watched_ < 0)
                   ? G_IO_OUT
                   : G_IO_IN;
      break;
    case Stage::kWelcome:
    case Stage::kOpen:
    case Stage::kClosing:
      wanted = paused() ? 0 : G_IO_IN;
      if (blocked_) wanted |= G_IO_OUT;
      break;
    case Stage::kDraining:
      wanted = G_IO_IN;
      break;
    case Stage::kEnded:
      break;
  }
  if (wanted == watched_) return;
  watched_ = wanted;
  if (wanted < 0) {
    watch_.cancel();
  } else {
    watch_ = watch_fd(fd_.get(), static_cast<GIOCondition>(wanted), [this](GIOCondition ready) { on_ready(ready); });
  }
}

}  // namespace usblease::cluster
