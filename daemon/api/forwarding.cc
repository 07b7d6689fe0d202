#include "daemon/api/forwarding.h"

#include <utility>

#include "daemon/api/admin_requests.h"

namespace usblease::api {
namespace {

// Where the answers to another host's client go.
class ForwardedSink : public AnswerSink {
 public:
  explicit ForwardedSink(cluster::ForwardedCall call) : call_(std::move(call)) {}
  void answer(ServerFrame& frame) override { call_.answer(frame.SerializeAsString(), frame.more()); }

 private:
  cluster::ForwardedCall call_;
};

ServerFrame failure(command::Code code, const std::string& message) {
  ServerFrame frame;
  frame.mutable_status()->set_code(code);
  frame.mutable_status()->set_message(message);
  return frame;
}

}  // namespace

bool asks_coordinator(const ClientFrame& frame) {
  switch (frame.body_case()) {
    case ClientFrame::kListDevices:
    case ClientFrame::kDeviceInfo:
    case ClientFrame::kQueue:
    case ClientFrame::kEvents:
    case ClientFrame::kStatus:
      return true;
    default:
      return is_for_coordinator(frame);
  }
}

std::uint64_t forward(cluster::Router& router, const Caller& caller, const ClientFrame& frame,
                      const std::function<void(ServerFrame&)>& answered, std::function<void()> lost) {
  peer::Forward request;
  request.set_client_frame(frame.SerializeAsString());
  request.set_caller(caller.name);
  request.set_may_act(caller.may_act);
  const auto on_frame = [answered](const std::string& bytes, bool more) {
    ServerFrame answer;
    if (!answer.ParseFromString(bytes))
      answer = failure(command::CODE_INTERNAL, "the coordinator gave an answer that this version does not know");
    answer.set_more(more);
    answered(answer);
  };
  const auto on_end = [answered, lost = std::move(lost)](const command::Status* refused) {
    if (refused == nullptr) return lost();
    ServerFrame answer = failure(refused->code(), refused->message());
    answered(answer);
  };
  return router.forward(std::move(request), on_frame, on_end);
}

std::function<void()> serve_forwarded(
    cluster::ForwardedCall call,
    const std::function<void(const Caller&, const ClientFrame&, const Responder&)>& handle) {
  Caller caller;
  caller.name = call.request.caller();
  caller.host = call.host_id;
  caller.may_act = call.request.may_act();
  caller.may_read = true;
  caller.uid = static_cast<uid_t>(-1);  // of that host, so nobody here
  ClientFrame frame;
  const bool parsed = frame.ParseFromString(call.request.client_frame());
  const auto sink = std::make_shared<ForwardedSink>(std::move(call));
  const auto impl = std::make_shared<Responder::Impl>(sink, frame.id());
  const Responder responder(impl);
  if (!parsed || !asks_coordinator(frame)) {
    responder.fail(command::CODE_BAD_REQUEST, "another host passed on what is not for the coordinator");
    return [] {};
  }
  handle(caller, frame, responder);
  // The sink lives as long as the other host wants an answer; the responder, as long as the handler has it.
  return [sink, weak = std::weak_ptr(impl)] {
    if (const auto there = weak.lock()) there->abandon();
  };
}

}  // namespace usblease::api
