// One TLS connection, of either side: handshake, frames in, frames out, signs of life, the end. Private to
// daemon/cluster/.
//
// The accepting side sends an empty frame when it has accepted the peer. TLS 1.3 alone does not tell a client whether
// the server has liked its certificate. Later an empty frame is a sign of life: the dialer sends one when the line is
// quiet, and the other side answers each with one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/fd.h"
#include "common/frame.h"
#include "common/main_loop.h"
#include "daemon/cluster/tls_credentials.h"
#include "daemon/cluster/transport.h"

namespace usblease::cluster {

struct TlsLimits {
  std::uint32_t handshake_ms = 5'000;
  std::uint32_t silent_ms = 4'000;
  std::size_t output_bytes_max = 0;
};

// Calls of tick() in silent_ms.
inline constexpr std::uint32_t kTicksPerSilence = 4;

class TlsConnection : public std::enable_shared_from_this<TlsConnection> {
 public:
  struct Events {
    std::function<void()> ready;                         // authenticated by both sides
    std::function<void(std::string payload)> frame;      // after ready
    std::function<void(DownReason, std::string)> ended;  // once, last; `why` is one sentence
  };
  // Beyond the certificate itself: is this host welcome?
  using Check = std::function<std::optional<Refusal>(const CertifiedHost&)>;

  // `fd`: connected, non-blocking. `peer`: for messages.
  static Result<std::shared_ptr<TlsConnection>> open(UniqueFd fd, TlsRole role,
                                                     std::shared_ptr<const TlsCredentials> credentials, Check check,
                                                     const TlsLimits& limits, std::string peer);
  ~TlsConnection();
  TlsConnection(const TlsConnection&) = delete;
  TlsConnection& operator=(const TlsConnection&) = delete;

  void set_events(Events events) { events_ = std::make_shared<const Events>(std::move(events)); }
  // Nobody hears of it any more; it says goodbye if that is possible at once, and is closed.
  void abandon();

  // False: not ready, or the queue is full. An empty payload is a sign of life.
  bool send(const std::string& payload);
  // Says goodbye after what is queued, within a second.
  void close(std::string why);
  // Tells the peer with an alert.
  void refuse(gnutls_alert_description_t alert, std::string why);
  // At once, without a goodbye.
  void cut(DownReason reason, std::string why);

  // To be called kTicksPerSilence times in silent_ms.
  void tick();
  // Ends the connection unless it is replaced or taken back (0) before.
  void set_deadline(std::uint32_t ms, std::string why);

  [[nodiscard]] bool ready() const { return stage_ == Stage::kOpen; }
  [[nodiscard]] bool joining() const { return joining_; }                     // valid once ready
  [[nodiscard]] const CertifiedHost& host() const { return verified_.host; }  // empty: a joining one
  [[nodiscard]] const std::string& authority() const { return verified_.authority; }
  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::size_t queued_bytes() const { return output_.size() - output_sent_; }

 private:
  // kWelcome: a client waits for the server's first frame. kClosing: output goes out, then goodbye. kDraining: what
  // still comes is thrown away, so that the kernel does not destroy our last words with a reset.
  enum class Stage : std::uint8_t { kHandshake, kWelcome, kOpen, kClosing, kDraining, kEnded };

  TlsConnection(UniqueFd fd, TlsRole role, std::shared_ptr<const TlsCredentials> credentials, Check check,
                const TlsLimits& limits, std::string peer);
  static int verify_peer(gnutls_session_t session);
  static ssize_t pull(gnutls_transport_ptr_t self, void* data, std::size_t size);
  static ssize_t push(gnutls_transport_ptr_t self, const void* data, std::size_t size);
  static int wait_readable(gnutls_transport_ptr_t self, unsigned ms);
  int verify();

  void on_ready(GIOCondition condition);
  void handshake();
  void handshake_done();
  void tell_ready();
  void receive();
  void take_frames();
  void take(std::string payload);
  void queue(const std::string& payload);
  void flush();
  void flush_failed(int error);
  void schedule_receive();
  void failed(int error);
  void say_goodbye();
  void drain();
  void end(DownReason reason, std::string why);
  [[nodiscard]] bool paused() const;
  void update_watch();

  UniqueFd fd_;
  const TlsRole role_;
  const std::shared_ptr<const TlsCredentials> credentials_;
  const Check check_;
  const TlsLimits limits_;
  const std::string peer_;
  SessionPtr session_;
  // Shared, so that a callback may replace or drop the callbacks.
  std::shared_ptr<const Events> events_;
  Stage stage_ = Stage::kHandshake;
  bool joining_ = false;
  TlsCredentials::Verified verified_;
  bool verified_set_ = false;
  std::optional<Refusal> refusal_;
  int io_errno_ = 0;  // of the last pull or push that failed; 0: the stream ended

  FrameReader reader_;
  std::string output_;
  std::size_t output_sent_ = 0;
  bool unfinished_ = false;  // GnuTLS holds a record that the socket did not take whole
  bool blocked_ = false;
  bool receive_posted_ = false;
  std::uint32_t quiet_ticks_ = 0;    // since something came
  std::uint32_t unsent_ticks_ = 0;   // since something was sent
  std::uint32_t stalled_ticks_ = 0;  // since the socket took something, while it should
  std::size_t drained_ = 0;
  DownReason end_reason_ = DownReason::kClosed;
  std::string end_why_;

  int watched_ = -1;
  SourceHandle watch_;
  SourceHandle deadline_;
};

}  // namespace usblease::cluster
