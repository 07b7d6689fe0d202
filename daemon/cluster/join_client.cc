#include "daemon/cluster/join_client.h"

#include <utility>

#include "daemon/cluster/tls_dial.h"

namespace usblease::cluster {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

}  // namespace

class JoinClient::Impl {
 public:
  Impl(JoinToken token, std::string payload, std::uint32_t timeout_ms, Done done)
      : token_(std::move(token)), payload_(std::move(payload)), done_(std::move(done)) {
    timer_ = run_after(timeout_ms * kNsPerMs, [this, timeout_ms] {
      fail_with(ErrorCode::kTimedOut, "no member of the cluster answered within " + std::to_string(timeout_ms) + " ms" +
                                          (last_why_.empty() ? "" : "; " + last_why_));
    });
    post_ = run_after(0, [this] { begin(); });
  }

  ~Impl() {
    if (connection_) connection_->abandon();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

 private:
  void begin() {
    if (payload_.empty() || payload_.size() > kJoinPayloadMax)
      return fail_with(ErrorCode::kBadInput, "a request to join has 1 to " + std::to_string(kJoinPayloadMax) +
                                                 " bytes; this one " + std::to_string(payload_.size()));
    auto credentials = TlsCredentials::of_joiner(token_.cluster_id, token_.authority_fingerprint);
    if (!credentials) return fail_with(credentials.error().code, credentials.error().message);
    credentials_ = std::move(*credentials);
    next();
  }

  // One address after the other: each may fail before or after it has authenticated itself.
  void next() {
    if (address_ == token_.addresses.size()) {
      return fail_with(untrusted_ ? ErrorCode::kDenied : ErrorCode::kUnavailable,
                       "no member of cluster " + token_.cluster_id + " answered; " + last_why_);
    }
    TlsLimits limits;
    limits.output_bytes_max = 2 * kJoinPayloadMax;
    dial_ = std::make_unique<TlsDial>(
        std::vector<std::string>{token_.addresses[address_++]},
        TlsDial::Setup{TlsRole::kJoinClient, credentials_, {}, limits},
        TlsDial::Events{[this](std::shared_ptr<TlsConnection> connection) { ready(std::move(connection)); },
                        [this](DownReason reason, const std::string& why) { failed(reason, why); }});
  }

  void ready(std::shared_ptr<TlsConnection> connection) {
    connection_ = std::move(connection);
    connection_->set_events({
        .ready = [] {},
        .frame = [this](std::string payload) { answered(std::move(payload)); },
        .ended =
            [this](DownReason reason, const std::string& why) {
              const std::string peer = connection_->peer();
              connection_.reset();
              failed(reason, peer + ": " + why);
            },
    });
    dial_.reset();
    connection_->send(payload_);
  }

  void failed(DownReason reason, const std::string& why) {
    last_why_ = why;
    untrusted_ = untrusted_ || reason == DownReason::kUntrusted;
    next();
  }

  void answered(std::string payload) {
    finish(JoinAnswer{std::move(payload), connection_->authority(), connection_->host().host_id});
  }

  void fail_with(ErrorCode code, std::string message) { finish(tl::unexpected(Error{code, std::move(message)})); }

  void finish(Result<JoinAnswer> result) {
    timer_.cancel();
    dial_.reset();
    if (connection_) connection_->abandon();
    connection_.reset();
    const Done done = std::move(done_);
    done(std::move(result));  // may destroy this
  }

  const JoinToken token_;
  const std::string payload_;
  Done done_;
  std::shared_ptr<const TlsCredentials> credentials_;
  std::size_t address_ = 0;
  bool untrusted_ = false;
  std::string last_why_;
  std::unique_ptr<TlsDial> dial_;
  std::shared_ptr<TlsConnection> connection_;
  SourceHandle timer_;
  SourceHandle post_;
};

JoinClient::JoinClient(JoinToken token, std::string payload, std::uint32_t timeout_ms, Done done)
    : impl_(std::make_shared<Impl>(std::move(token), std::move(payload), timeout_ms, std::move(done))) {}

JoinClient::~JoinClient() = default;

}  // namespace usblease::cluster
