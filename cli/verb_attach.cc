#include <algorithm>

#include "cli/connection.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "common/boottime.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kFirstPauseNs = 100'000'000;
constexpr std::uint64_t kLongestPauseNs = 2'000'000'000;

api::ClientFrame request_of(const Invocation& invocation) {
  api::ClientFrame request;
  auto* attach = request.mutable_attach();
  attach->set_request_id(random_hex(16));
  attach->set_guest(invocation.guest);
  for (const auto& device : invocation.devices) attach->add_devices(device);
  attach->set_wait_ms(static_cast<std::uint32_t>(invocation.wait_s.value_or(0) * 1000));
  attach->set_duration_s(invocation.for_s.value_or(0));
  attach->set_priority(invocation.priority.value_or(0));
  return request;
}

// Sends one request until it is answered. When the connection breaks (the daemon restarts), the same request goes out
// again under the same request_id, so that it is one request however often it is sent.
class Attempt {
 public:
  Attempt(const Invocation& invocation, Context& context)
      : invocation_(invocation),
        context_(context),
        request_(request_of(invocation)),
        deadline_ns_(deadline_after_s(invocation.wait_s.value_or(0) + context.globals.timeout_s)),
        line_(context.globals.quiet) {}

  Result<api::ServerFrame> run() {
    for (std::uint64_t pause_ns = kFirstPauseNs;; pause_ns = std::min(pause_ns * 2, kLongestPauseNs)) {
      auto reply = once();
      if (reply || context_.interrupt.caught()) return reply;
      const bool time_left = boottime_now_ns() + pause_ns < deadline_ns_;
      if (!worth_repeating(reply.error()) || !time_left) return explained(reply.error());
      line_.show("usbleased is away (it hung up, or restarts); asking again under the same request");
      if (context_.interrupt.wait_readable(-1, boottime_now_ns() + pause_ns) == Interrupt::Wake::kInterrupted) {
        return interrupted();
      }
    }
  }

 private:
  Result<api::ServerFrame> once() {
    const std::uint64_t connect_deadline_ns = std::min(deadline_ns_, deadline_after_s(context_.globals.timeout_s));
    auto connection = Connection::open(context_.globals.socket_path, context_.interrupt, connect_deadline_ns);
    unanswered_ = true;
    if (!connection) return tl::unexpected(connection.error());
    const auto show = [this](const api::ServerFrame& frame) -> Result<void> {
      sent_before_ = true;
      line_.show(progress_text(frame.attach_progress(), invocation_.guest, invocation_.devices, wall_clock_unix_s()));
      return {};
    };
    auto reply = connection->call(request_, api::ServerFrame::kAttach, deadline_ns_, show);
    unanswered_ = connection->unanswered();
    sent_before_ = sent_before_ || unanswered_;
    return reply;
  }

  // What cannot be reached, or cannot do it now, is worth it only once the daemon has taken the request: before, the
  // person should hear at once that it does not run.
  [[nodiscard]] bool worth_repeating(const Error& error) const {
    return sent_before_ && error.code == ErrorCode::kUnavailable;
  }

  // A request that was sent and not answered may have been granted.
  [[nodiscard]] tl::unexpected<Error> explained(Error error) const {
    if (sent_before_ && unanswered_) {
      error.message += "; whether the lease was granted is not known: look with `usblease list`";
    }
    return tl::unexpected(std::move(error));
  }

  const Invocation& invocation_;
  Context& context_;
  api::ClientFrame request_;
  std::uint64_t deadline_ns_;
  ProgressLine line_;
  bool sent_before_ = false;  // the daemon may know the request
  bool unanswered_ = false;   // the last attempt
};

}  // namespace

Result<void> verb_attach(const Invocation& invocation, Context& context) {
  Result<api::ServerFrame> reply = Attempt(invocation, context).run();
  if (!reply && context.interrupt.caught())
    return fail(ErrorCode::kTimedOut, "interrupted; usbleased cancels the request unless it was granted already");
  if (!reply) return tl::unexpected(reply.error());
  if (invocation.globals.json) return print_json(reply->attach());
  for (const auto& grant : reply->attach().grants()) {
    print_done(invocation.globals, escape_text(grant.device()) + " attached to " + escape_text(invocation.guest) +
                                       " under token " + std::to_string(grant.token()));
  }
  return {};
}

}  // namespace usblease::cli
