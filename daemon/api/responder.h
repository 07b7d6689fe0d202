// One request's way back to its client. Knows no socket: whoever handles requests can be tested without one.
// For the main loop's thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "api.pb.h"

namespace usblease::api {

// Where answers go; the server's connections are such sinks.
class AnswerSink {
 public:
  AnswerSink() = default;
  AnswerSink(const AnswerSink&) = delete;
  AnswerSink& operator=(const AnswerSink&) = delete;
  virtual ~AnswerSink() = default;
  // `frame.id()` names the request; `frame.more()` says whether further frames follow. Must not call back into the
  // handler, so that a handler may answer in the middle of anything.
  virtual void answer(ServerFrame& frame) = 0;
};

// Copyable; the last copy that dies unanswered answers CODE_INTERNAL, so that no client waits for ever.
class Responder {
 public:
  struct Impl;
  explicit Responder(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

  // Final answer; a second one is ignored. `frame` holds body and status (none: CODE_OK); id is filled in.
  void finish(ServerFrame frame) const;
  void fail(command::Code code, std::string message) const;
  // A frame with more = true. Ignored after the final answer.
  void progress(ServerFrame frame) const;
  // Runs once if the client goes away before finish(), from the main loop and never from inside finish() or progress();
  // at once if the client is already known to be gone. It does not run when the server itself is destroyed.
  void on_abandoned(std::function<void()> callback) const;
  // Not answered, and the client is there as far as is known.
  [[nodiscard]] bool is_open() const;

 private:
  std::shared_ptr<Impl> impl_;
};

// For the server and for tests of handlers.
struct Responder::Impl {
  Impl(std::weak_ptr<AnswerSink> sink_, std::uint64_t id_) : sink(std::move(sink_)), id(id_) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  void send(ServerFrame& frame, bool more);
  // The client is gone: nothing is sent any more, and the callback runs.
  void abandon();
  // The same without the callback.
  void drop();

  std::weak_ptr<AnswerSink> sink;
  std::uint64_t id;
  bool finished = false;
  bool gone = false;
  std::function<void()> abandoned;
};

}  // namespace usblease::api
