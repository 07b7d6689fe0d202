#include "daemon/api/responder.h"

#include <utility>

namespace usblease::api {

Responder::Impl::~Impl() {
  if (finished || gone) return;
  ServerFrame frame;
  frame.mutable_status()->set_code(command::CODE_INTERNAL);
  frame.mutable_status()->set_message("usbleased dropped this request without an answer; this is a fault of usbleased");
  send(frame, false);
}

void Responder::Impl::send(ServerFrame& frame, bool more) {
  if (finished || gone) return;
  if (!more) {
    finished = true;
    abandoned = nullptr;
  }
  const auto to = sink.lock();
  if (!to) return;
  frame.set_id(id);
  frame.set_more(more);
  to->answer(frame);
}

void Responder::Impl::abandon() {
  if (finished || gone) return;
  gone = true;
  // Moved out first: the callback may hold the last reference to us.
  const auto callback = std::exchange(abandoned, nullptr);
  if (callback) callback();
}

void Responder::Impl::drop() {
  gone = true;
  abandoned = nullptr;
}

void Responder::finish(ServerFrame frame) const {
  if (!frame.has_status()) frame.mutable_status()->set_code(command::CODE_OK);
  impl_->send(frame, false);
}

void Responder::fail(command::Code code, std::string message) const {
  ServerFrame frame;
  frame.mutable_status()->set_code(code);
  frame.mutable_status()->set_message(std::move(message));
  impl_->send(frame, false);
}

void Responder::progress(ServerFrame frame) const { impl_->send(frame, true); }

void Responder::on_abandoned(std::function<void()> callback) const {
  if (impl_->finished) return;
  if (impl_->gone) {
    callback();
    return;
  }
  impl_->abandoned = std::move(callback);
}

bool Responder::is_open() const { return !impl_->finished && !impl_->gone && !impl_->sink.expired(); }

}  // namespace usblease::api
