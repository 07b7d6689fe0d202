#include "plugin/libvirt/hook_call.h"

#include <unistd.h>

#include <algorithm>

#include "api.pb.h"
#include "common/boottime.h"
#include "common/client.h"
#include "common/status_code.h"

namespace usblease::hook {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kHelloId = 1;
constexpr std::uint64_t kCallId = 2;
constexpr int kFramesMax = 256;  // of progress; a daemon that sends more has lost its way

api::Declaration to_api(Way way) {
  switch (way) {
    case Way::kMetadata:
      return api::DECLARATION_METADATA;
    case Way::kRedirdev:
      return api::DECLARATION_REDIRDEV;
    case Way::kHostdev:
      return api::DECLARATION_HOSTDEV;
  }
  return api::DECLARATION_UNSPECIFIED;
}

std::string hello_frame() {
  api::ClientFrame frame;
  frame.set_id(kHelloId);
  frame.mutable_hello()->set_version(kApiVersion);
  frame.mutable_hello()->set_program("usblease-hook");
  return frame.SerializeAsString();
}

std::string call_frame(const Call& call, std::uint64_t deadline_ns) {
  api::ClientFrame frame;
  frame.set_id(kCallId);
  auto& body = *frame.mutable_hook_call();
  body.set_operation(call.operation);
  body.set_guest_name(call.guest_name);
  body.set_guest_uuid(call.guest_uuid);
  body.set_domain_id(call.domain_id);
  for (const Declared& d : call.devices) {
    auto& out = *body.add_devices();
    out.set_device(d.device);
    out.set_how(to_api(d.way));
    out.set_required(d.required);
    out.set_wait_s(d.wait_s);
  }
  body.set_invoked_boottime_ns(call.invoked_boottime_ns);
  // libvirtd waits for its hook, so the parent is alive; should it have died, its start says so.
  const pid_t parent = getppid();
  body.set_libvirtd_pid(parent);
  body.set_libvirtd_start_ticks(process_start_ticks(parent).value_or(0));
  const std::uint64_t now_ns = boottime_now_ns();
  const std::uint64_t left_ms = deadline_ns > now_ns ? (deadline_ns - now_ns) / kNsPerMs : 0;
  body.set_deadline_ms(static_cast<std::uint32_t>(std::min<std::uint64_t>(left_ms, UINT32_MAX)));
  return frame.SerializeAsString();
}

tl::unexpected<Error> nonsense(const std::string& what) {
  return fail(ErrorCode::kUnavailable, "usbleased answered with " + what +
                                           "; are both of one version? `usblease status` and the log of usbleased "
                                           "say more");
}

Result<void> to_result(const command::Status& status) {
  if (status.code() == command::CODE_OK) return {};
  if (!status.message().empty()) return fail(error_code_of(status.code()), status.message());
  return fail(error_code_of(status.code()),
              "usbleased refused without saying why (code " + std::to_string(status.code()) + "); see its log");
}

Result<void> wait_for_verdict(Client& client, std::uint64_t deadline_ns) {
  for (int frames = 0; frames < kFramesMax; ++frames) {
    const auto payload = client.receive(deadline_ns);
    if (!payload) {
      if (payload.error().code == ErrorCode::kBadInput) return nonsense("bytes that are no frame");
      return tl::unexpected(payload.error());
    }
    api::ServerFrame frame;
    if (!frame.ParseFromString(*payload)) return nonsense("a frame that cannot be read");
    if (frame.more()) continue;
    if (frame.id() == kCallId) return to_result(frame.status());
    if (frame.id() != kHelloId) return nonsense("a frame that nobody asked for");
    if (auto greeted = to_result(frame.status()); !greeted) return greeted;
  }
  return nonsense("progress without an end");
}

}  // namespace

Result<void> call_daemon(const std::string& socket_path, const Call& call, std::uint64_t deadline_ns) {
  auto client = Client::connect(socket_path, deadline_ns);
  if (!client) return tl::unexpected(client.error());
  // The call does not wait for the answer to Hello: one round trip less while libvirt waits.
  if (auto sent = client->send(hello_frame(), deadline_ns); !sent) return sent;
  if (auto sent = client->send(call_frame(call, deadline_ns), deadline_ns); !sent) {
    // The daemon may have hung up after a refusal that says why.
    if (auto verdict = wait_for_verdict(*client, deadline_ns); !verdict) return verdict;
    return sent;
  }
  return wait_for_verdict(*client, deadline_ns);
}

}  // namespace usblease::hook
