#include "cli/connection.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cli/exit_code.h"
#include "cli/table.h"
#include "common/boottime.h"
#include "common/frame.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kNsPerS = 1'000'000'000;
constexpr std::uint64_t kConnectSliceNs = 200'000'000;    // how late Ctrl-C may be noticed while connecting
constexpr std::size_t kReplyBytesMax = 64 * 1024 * 1024;  // of a list in several frames

tl::unexpected<Error> not_our_protocol(const std::string& what) {
  return fail(ErrorCode::kInternal, "usbleased sent " + what +
                                        "; is something else listening on this socket, or are the versions of "
                                        "usblease and usbleased different?");
}

Result<api::ServerFrame> parse(const std::string& payload) {
  api::ServerFrame frame;
  if (!frame.ParseFromString(payload)) return not_our_protocol("what is not a message of the request protocol");
  return frame;
}

tl::unexpected<Error> status_error(ErrorCode code, const command::Status& status) {
  if (!status.message().empty()) return fail(code, status.message());
  return fail(code, "usbleased answered " + command::Code_Name(status.code()) + " and no reason; see its log");
}

// Who lacks the right to the socket should not be told to look whether the daemon runs.
Error explained(Error error, const std::string& socket_path) {
  if (error.code != ErrorCode::kUnavailable || access(socket_path.c_str(), W_OK) == 0 || errno != EACCES) return error;
  return {ErrorCode::kDenied,
          "you may not talk to usbleased at " + socket_path + "; become root, or a member of the daemon's group"};
}

bool changes_something(const api::ClientFrame& request) {
  switch (request.body_case()) {
    case api::ClientFrame::kDetach:
    case api::ClientFrame::kAssign:
    case api::ClientFrame::kRevoke:
    case api::ClientFrame::kExtend:
    case api::ClientFrame::kClusterInit:
    case api::ClientFrame::kClusterAdd:
    case api::ClientFrame::kClusterJoin:
    case api::ClientFrame::kClusterTransfer:
    case api::ClientFrame::kClusterRemove:
    case api::ClientFrame::kClusterRepair:
    case api::ClientFrame::kClusterRotate:
    case api::ClientFrame::kDeclareDead:
    case api::ClientFrame::kDrain:
    case api::ClientFrame::kRestorePart:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::uint64_t deadline_after_s(std::uint64_t seconds) { return boottime_now_ns() + seconds * kNsPerS; }

tl::unexpected<Error> interrupted() { return fail(ErrorCode::kTimedOut, "interrupted"); }

Result<Connection> Connection::open(const std::string& socket_path, Interrupt& interrupt, std::uint64_t deadline_ns) {
  bool dropped = false;
  for (;;) {
    const std::uint64_t slice_ns = std::min(deadline_ns, boottime_now_ns() + kConnectSliceNs);
    auto client = Client::connect(socket_path, slice_ns);
    if (client) {
      Connection connection(std::move(*client), interrupt);
      api::ClientFrame hello;
      hello.mutable_hello()->set_version(kApiVersion);
      hello.mutable_hello()->set_program("usblease " USBLEASE_VERSION);
      const auto answer = connection.call(std::move(hello), api::ServerFrame::kHello, deadline_ns, {});
      // Nothing was asked yet, so a daemon that starts anew just now is no reason to give up.
      const bool hung_up = !answer && connection.unanswered() && answer.error().code == ErrorCode::kUnavailable;
      if (hung_up && !std::exchange(dropped, true)) continue;
      if (!answer) return tl::unexpected(answer.error());
      if (answer->hello().version() == kApiVersion) return connection;
      return fail(ErrorCode::kUnavailable, "usbleased speaks version " + std::to_string(answer->hello().version()) +
                                               " of the request protocol, this program " + std::to_string(kApiVersion) +
                                               "; install the same version of both");
    }
    // The backlog is full: somebody listens, but does not accept yet.
    if (client.error().code != ErrorCode::kTimedOut || boottime_now_ns() >= deadline_ns) {
      return tl::unexpected(explained(client.error(), socket_path));
    }
    if (interrupt.wait_readable(-1, 0) == Interrupt::Wake::kInterrupted) return interrupted();
  }
}

Result<void> Connection::send(api::ClientFrame* frame, std::uint64_t deadline_ns) {
  frame->set_id(++id_);
  auto sent = client_.send(frame->SerializeAsString(), deadline_ns);
  if (!sent) unanswered_ = true;
  return sent;
}

Result<api::ServerFrame> Connection::receive(std::uint64_t deadline_ns) {
  for (;;) {
    // A deadline in the past: take what is there, and leave the waiting to the poll that Ctrl-C wakes.
    auto payload = client_.receive(0);
    if (payload) {
      auto frame = parse(*payload);
      // Id 0 is about the connection as a whole, such as too many of them.
      const bool about_connection = frame && frame->id() == 0 && !frame->more() && frame->has_status() &&
                                    error_of(frame->status().code()).has_value();
      if (frame && frame->id() != id_ && !about_connection) {
        return not_our_protocol("an answer to another request (" + std::to_string(frame->id()) + ")");
      }
      return frame;
    }
    if (payload.error().code == ErrorCode::kBadInput) return not_our_protocol("garbage: " + payload.error().message);
    Interrupt::Wake wake = Interrupt::Wake::kDeadline;
    if (payload.error().code == ErrorCode::kTimedOut && deadline_ns != 0)
      wake = interrupt_->wait_readable(client_.fd(), deadline_ns);
    if (wake == Interrupt::Wake::kReady) continue;
    unanswered_ = true;
    if (wake == Interrupt::Wake::kInterrupted) return interrupted();
    return tl::unexpected(payload.error());
  }
}

Result<api::ServerFrame> Connection::checked(api::ServerFrame frame, api::ServerFrame::BodyCase expected) {
  if (frame.more()) return frame;
  if (const auto code = error_of(frame.status().code()); code) return status_error(*code, frame.status());
  if (frame.body_case() != expected) return not_our_protocol("an answer of another kind");
  return frame;
}

Result<api::ServerFrame> Connection::reply(api::ServerFrame::BodyCase expected, std::uint64_t deadline_ns,
                                           const OnMore& on_more) {
  for (;;) {
    auto frame = receive(deadline_ns);
    if (frame) frame = checked(std::move(*frame), expected);
    if (!frame || !frame->more()) return frame;
    if (!on_more) return not_our_protocol("progress where none belongs");
    if (const auto taken = on_more(*frame); !taken) return tl::unexpected(taken.error());
  }
}

Result<void> Connection::begin(api::ClientFrame request, std::uint64_t deadline_ns) {
  return send(&request, deadline_ns);
}

Result<std::optional<api::ServerFrame>> Connection::next(api::ServerFrame::BodyCase expected,
                                                         std::uint64_t deadline_ns) {
  auto frame = receive(deadline_ns);
  if (!frame && frame.error().code == ErrorCode::kTimedOut && (deadline_ns == 0 || !interrupt_->caught())) {
    unanswered_ = false;
    return std::nullopt;
  }
  if (frame) frame = checked(std::move(*frame), expected);
  if (!frame) return tl::unexpected(frame.error());
  return std::optional(std::move(*frame));
}

Result<api::ServerFrame> Connection::call(api::ClientFrame request, api::ServerFrame::BodyCase expected,
                                          std::uint64_t deadline_ns, const OnMore& on_more) {
  if (const auto sent = send(&request, deadline_ns); !sent) return tl::unexpected(sent.error());
  return reply(expected, deadline_ns, on_more);
}

namespace {

// `unanswered`: whether the daemon went away before it answered.
Result<api::ServerFrame> ask_once(Context& context, const api::ClientFrame& request,
                                  api::ServerFrame::BodyCase expected, std::uint64_t deadline_ns, bool* unanswered) {
  auto connection = Connection::open(context.globals.socket_path, context.interrupt, deadline_ns);
  if (!connection) return tl::unexpected(connection.error());
  api::ServerFrame parts;
  std::size_t bytes = 0;
  const auto collect = [&](const api::ServerFrame& frame) -> Result<void> {
    if (frame.body_case() != expected) return not_our_protocol("an answer of another kind");
    bytes += frame.ByteSizeLong();
    if (bytes > kReplyBytesMax) return not_our_protocol("an answer of more than 64 MiB");
    parts.MergeFrom(frame);
    return {};
  };
  auto reply = connection->call(request, expected, deadline_ns, collect);
  *unanswered = connection->unanswered();
  if (!reply) return reply;
  parts.MergeFrom(*reply);
  return parts;
}

}  // namespace

Result<api::ServerFrame> ask(Context& context, const api::ClientFrame& request, api::ServerFrame::BodyCase expected) {
  const std::uint64_t deadline_ns = deadline_after_s(context.globals.timeout_s);
  bool unanswered = false;
  auto reply = ask_once(context, request, expected, deadline_ns, &unanswered);
  if (reply || !unanswered) return reply;
  if (changes_something(request)) {
    reply.error().message += "; whether it was done is not known: look with `usblease info` or `usblease events`";
    return reply;
  }
  // A daemon that starts anew, as it does when its host becomes a store member, drops whom it serves: one more try.
  if (reply.error().code == ErrorCode::kUnavailable)
    return ask_once(context, request, expected, deadline_ns, &unanswered);
  return reply;
}

}  // namespace usblease::cli
