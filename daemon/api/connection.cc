#include "daemon/api/connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/text.h"

namespace usblease::api {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::size_t kReadBytes = 65'536;
// So many requests of one client are handled before the others have their turn.
constexpr int kFramesPerTurn = 32;
// A client that does not fetch its answers is not asked for more questions.
constexpr std::size_t kOutputPauseBytes = std::size_t{256} * 1024;
// Memory that an idle connection may keep.
constexpr std::size_t kKeptCapacityBytes = 65'536;

ServerFrame status_frame(std::uint64_t id, command::Code code, std::string message) {
  ServerFrame frame;
  frame.set_id(id);
  frame.mutable_status()->set_code(code);
  frame.mutable_status()->set_message(std::move(message));
  return frame;
}

}  // namespace

Server::Connection::Connection(Server& server, std::uint64_t id, UniqueFd fd, const PeerCredentials& peer)
    : server_(&server), id_(id), fd_(std::move(fd)), peer_(peer) {}

void Server::Connection::start() {
  timer_ = run_after(server_->limits_.hello_timeout_ms * kNsPerMs, [this] {
    const auto self = shared_from_this();
    end(0, command::CODE_TIMED_OUT,
        "no Hello came within " + std::to_string(server_->limits_.hello_timeout_ms) + " ms");
  });
  update_watch();
}

void Server::Connection::drop() {
  server_ = nullptr;
  stage_ = Stage::kClosed;
  watch_.cancel();
  timer_.cancel();
  for (const auto& [id, unanswered] : unanswered_) {
    if (const auto impl = unanswered.lock()) impl->drop();
  }
  unanswered_.clear();
  fd_.reset();
}

std::string Server::Connection::peer_text() const {
  return "uid " + std::to_string(peer_.uid) + " pid " + std::to_string(peer_.pid);
}

// --- In ---------------------------------------------------------------------------------------------------------

void Server::Connection::on_ready(GIOCondition ready) {
  const auto self = shared_from_this();  // close() drops the server's reference
  if ((ready & G_IO_OUT) != 0) {
    blocked_ = false;
    flush();
    if (paused_ && can_take()) schedule_pump();
  }
  if (stage_ == Stage::kHello || stage_ == Stage::kOpen) {
    if ((watched_ & G_IO_IN) != 0) {
      if ((ready & (G_IO_IN | G_IO_HUP | G_IO_ERR)) != 0) receive();
    } else if ((ready & (G_IO_HUP | G_IO_ERR)) != 0) {
      close();
    }
  } else if ((ready & (G_IO_HUP | G_IO_ERR)) != 0) {
    close();
  }
  update_watch();
}

// One read a turn: a client that sends without end gets no more than its share.
void Server::Connection::receive() {
  std::array<char, kReadBytes> chunk;
  const ssize_t count = recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
  if (count > 0) {
    reader_.push({chunk.data(), static_cast<std::size_t>(count)});
    pump();
  } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    close();
  }
}

bool Server::Connection::can_take() const {
  return (stage_ == Stage::kHello || stage_ == Stage::kOpen) &&
         unanswered_.size() < server_->limits_.requests_per_connection && output_bytes() <= kOutputPauseBytes;
}

// Handles the frames that are there. Called by the main loop only, never from inside the handler.
void Server::Connection::pump() {
  pumping_ = true;
  paused_ = true;
  for (int frames = 0; can_take(); ++frames) {
    if (frames == kFramesPerTurn) {
      schedule_pump();
      break;
    }
    const auto payload = reader_.next();
    if (!payload) {
      end(0, command::CODE_BAD_REQUEST, payload.error().message + "; the connection is closed");
    } else if (!payload->has_value()) {
      paused_ = false;
      break;
    } else {
      take(**payload);
    }
  }
  pumping_ = false;
  flush();
  if (paused_ && can_take()) schedule_pump();
  update_watch();
}

void Server::Connection::schedule_pump() {
  if (std::exchange(pump_posted_, true)) return;
  post([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->pump_posted_ = false;
    if (self->stage_ == Stage::kHello || self->stage_ == Stage::kOpen) self->pump();
  });
}

void Server::Connection::take(const std::string& payload) {
  ClientFrame frame;
  if (!frame.ParseFromString(payload)) {
    end(0, command::CODE_BAD_REQUEST,
        "a frame of " + std::to_string(payload.size()) + " bytes is not a request of protocol version " +
            std::to_string(kApiVersion) + "; the connection is closed");
  } else if (stage_ == Stage::kHello) {
    greet(frame);
  } else {
    request(frame);
  }
}

void Server::Connection::greet(const ClientFrame& frame) {
  if (!frame.has_hello()) {
    end(frame.id(), command::CODE_BAD_REQUEST, "the first frame of a connection must be Hello");
    return;
  }
  const Hello& hello = frame.hello();
  const std::string program = escape_text(hello.program().substr(0, 64));
  if (hello.version() != kApiVersion) {
    end(frame.id(), command::CODE_REFUSED,
        "usbleased speaks version " + std::to_string(kApiVersion) + " of the request protocol, " +
            (program.empty() ? "the client" : program) + " speaks version " + std::to_string(hello.version()) +
            "; install both from the same version of usblease",
        &server_->hello_);
    return;
  }
  timer_.cancel();
  caller_ = identify(fd_.get(), peer_, server_->rules_);
  stage_ = Stage::kOpen;
  ServerFrame reply = status_frame(frame.id(), command::CODE_OK, "");
  *reply.mutable_hello() = server_->hello_;
  queue(reply);
}

// What needs no handler to be refused.
bool Server::Connection::refused_here(const ClientFrame& frame) {
  if (!caller_.may_act && !caller_.may_read) {
    reply(frame.id(), command::CODE_DENIED, denial(caller_, server_->rules_));
    return true;
  }
  if (frame.body_case() == ClientFrame::BODY_NOT_SET) {
    reply(frame.id(), command::CODE_BAD_REQUEST,
          "this usbleased does not know that request; install client and daemon from the same version of usblease");
    return true;
  }
  if (frame.has_hello()) {
    reply(frame.id(), command::CODE_BAD_REQUEST, "Hello came twice on one connection");
    return true;
  }
  if (frame.id() == 0 || unanswered_.contains(frame.id())) {
    // An answer under the request's own id would be taken for the answer to the first of the two.
    end(0, command::CODE_BAD_REQUEST,
        "request id " + std::to_string(frame.id()) +
            (frame.id() == 0 ? " is not allowed" : " is still in use by an unanswered request") +
            "; the connection is closed");
    return true;
  }
  return false;
}

void Server::Connection::request(const ClientFrame& frame) {
  if (refused_here(frame)) return;
  const auto impl = std::make_shared<Responder::Impl>(weak_from_this(), frame.id());
  unanswered_.emplace(frame.id(), impl);
  server_->handler_(caller_, frame, Responder(impl));
}

// --- Out --------------------------------------------------------------------------------------------------------

void Server::Connection::answer(ServerFrame& frame) {
  if (stage_ != Stage::kOpen) return;
  if (!frame.more()) unanswered_.erase(frame.id());
  queue(frame);
  if (pumping_) return;
  flush();
  if (paused_ && can_take()) schedule_pump();
  update_watch();
}

void Server::Connection::reply(std::uint64_t id, command::Code code, std::string message) {
  ServerFrame frame = status_frame(id, code, std::move(message));
  queue(frame);
}

void Server::Connection::queue(ServerFrame& frame) {
  const std::string& message = frame.status().message();
  // A name that some guest or device chose may stand in it, and invalid UTF-8 would make the whole frame unreadable.
  if (g_utf8_validate_len(message.data(), message.size(), nullptr) == FALSE) {
    frame.mutable_status()->set_message(escape_text(message));
  }
  std::size_t size = frame.ByteSizeLong();
  ServerFrame too_large;
  const ServerFrame* out = &frame;
  if (size > kFramePayloadMax) {
    too_large = status_frame(frame.id(), command::CODE_INTERNAL,
                             "the answer has " + std::to_string(size) + " bytes, more than the protocol allows (" +
                                 std::to_string(kFramePayloadMax) + "); ask for less");
    too_large.set_more(frame.more());
    out = &too_large;
    size = too_large.ByteSizeLong();
  }
  for (int shift = 24; shift >= 0; shift -= 8) output_ += static_cast<char>((size >> shift) & 0xFFU);
  out->AppendToString(&output_);
  if (output_bytes() > server_->limits_.output_bytes) flush();
  if (output_bytes() > server_->limits_.output_bytes) cut_off("more unread output than is kept for one client");
}

// Writes what the socket takes. Calls nobody, so that it may run in the middle of anything; only ending() closes.
void Server::Connection::flush() {
  if (stage_ == Stage::kBroken || stage_ == Stage::kClosed) return;
  while (!blocked_ && output_bytes() > 0) {
    const ssize_t count = send(fd_.get(), output_.data() + output_sent_, output_bytes(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      output_sent_ += static_cast<std::size_t>(count);
      progress_ns_ = 0;
      blocked_ = output_bytes() > 0;
    } else if (errno == EAGAIN) {
      blocked_ = true;
    } else if (errno != EINTR) {
      cut_off(nullptr);
      return;
    }
  }
  if (output_bytes() == 0) {
    output_.clear();
    output_sent_ = 0;
    if (output_.capacity() > kKeptCapacityBytes) output_ = std::string();
    if (stage_ == Stage::kEnding) cut_off(nullptr);
  } else if (output_sent_ > output_.size() / 2) {
    output_.erase(0, output_sent_);
    output_sent_ = 0;
  }
  watch_output();
}

// A client that takes nothing at all for a while holds memory for nobody.
void Server::Connection::watch_output() {
  if (stage_ == Stage::kHello) return;  // the timer is Hello's
  if (!blocked_) {
    timer_.cancel();
    return;
  }
  if (progress_ns_ == 0) progress_ns_ = boottime_now_ns();
  if (!timer_) check_progress();
}

void Server::Connection::check_progress() {
  const std::uint64_t limit_ns = server_->limits_.stalled_output_ms * kNsPerMs;
  const std::uint64_t now_ns = boottime_now_ns();
  if (progress_ns_ != 0 && now_ns >= progress_ns_ + limit_ns) {
    cut_off("it read nothing for too long");
    return;
  }
  timer_ = run_after(progress_ns_ + limit_ns - now_ns, [this] { check_progress(); });
}

// --- The end ----------------------------------------------------------------------------------------------------

// A last frame, then the end. For the main loop's calls only: runs the callbacks of abandoned requests.
void Server::Connection::end(std::uint64_t id, command::Code code, const std::string& message,
                             const HelloReply* hello) {
  if (server_->may_log()) log::info("closing a client's connection: " + message, {{"PEER", peer_text()}});
  ServerFrame frame = status_frame(id, code, message);
  if (hello != nullptr) *frame.mutable_hello() = *hello;
  timer_.cancel();
  queue(frame);
  if (stage_ == Stage::kBroken) return;
  stage_ = Stage::kEnding;
  abandon_requests();
  if (!pumping_) flush();
  update_watch();
}

// Closes from the main loop, because this may be in the middle of the handler's own work. `why`: for the log, when the
// client was at fault.
void Server::Connection::cut_off(const char* why) {
  if (stage_ == Stage::kBroken || stage_ == Stage::kClosed) return;
  if (why != nullptr && server_->may_log()) {
    log::warning(std::string("cut off a client that does not read its answers: ") + why,
                 {{"PEER", peer_text()}, {"BYTES", std::to_string(output_bytes())}});
  }
  stage_ = Stage::kBroken;
  output_ = std::string();
  output_sent_ = 0;
  timer_.cancel();
  update_watch();
  post([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->close();
  });
}

void Server::Connection::close() {
  if (stage_ == Stage::kClosed) return;
  stage_ = Stage::kClosed;
  watch_.cancel();
  timer_.cancel();
  fd_.reset();
  server_->open_.erase(id_);
  abandon_requests();
}

void Server::Connection::abandon_requests() {
  const auto unanswered = std::exchange(unanswered_, {});
  for (const auto& [id, weak] : unanswered) {
    if (const auto impl = weak.lock()) impl->abandon();
  }
}

void Server::Connection::update_watch() {
  int wanted = -1;
  if (stage_ == Stage::kHello || stage_ == Stage::kOpen || stage_ == Stage::kEnding) {
    wanted = 0;  // a hang-up is always reported
    if (stage_ != Stage::kEnding && !pump_posted_ && can_take()) wanted |= G_IO_IN;
    if (blocked_) wanted |= G_IO_OUT;
  }
  if (wanted == watched_) return;
  watched_ = wanted;
  if (wanted < 0) {
    watch_.cancel();
  } else {
    watch_ = watch_fd(fd_.get(), static_cast<GIOCondition>(wanted), [this](GIOCondition ready) { on_ready(ready); });
  }
}

}  // namespace usblease::api
