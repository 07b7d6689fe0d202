// One conversation with usbleased: hello, one request, its replies. Ctrl-C ends every wait here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "api.pb.h"
#include "cli/verb.h"
#include "common/client.h"
#include "common/error.h"

namespace usblease::cli {

// Called for each frame that says more = true.
using OnMore = std::function<Result<void>(const api::ServerFrame&)>;

class Connection {
 public:
  // Connects and exchanges hellos. kUnavailable: nobody listens. A daemon of another version is refused.
  static Result<Connection> open(const std::string& socket_path, Interrupt& interrupt, std::uint64_t deadline_ns);

  // Sends `request` (its id is filled in) and returns the final reply, whose status is OK and whose body is `expected`.
  // A status that is not OK becomes the error. `on_more` may be empty: then a progress frame is an error.
  Result<api::ServerFrame> call(api::ClientFrame request, api::ServerFrame::BodyCase expected,
                                std::uint64_t deadline_ns, const OnMore& on_more);

  // The same in two steps, for an answer that is followed while other things happen: sends, then returns one frame
  // after the other; nullopt: none came by deadline_ns (0: none is there). The final one is checked as in call().
  Result<void> begin(api::ClientFrame request, std::uint64_t deadline_ns);
  Result<std::optional<api::ServerFrame>> next(api::ServerFrame::BodyCase expected, std::uint64_t deadline_ns);
  [[nodiscard]] int fd() const { return client_.fd(); }

  // The last error was not the daemon's answer (hung up, no answer in time, interrupted): whether it acted is not
  // known.
  [[nodiscard]] bool unanswered() const { return unanswered_; }

 private:
  Connection(Client client, Interrupt& interrupt) : client_(std::move(client)), interrupt_(&interrupt) {}
  Result<void> send(api::ClientFrame* frame, std::uint64_t deadline_ns);
  Result<api::ServerFrame> receive(std::uint64_t deadline_ns);
  static Result<api::ServerFrame> checked(api::ServerFrame frame, api::ServerFrame::BodyCase expected);
  Result<api::ServerFrame> reply(api::ServerFrame::BodyCase expected, std::uint64_t deadline_ns, const OnMore& on_more);

  Client client_;
  Interrupt* interrupt_;
  std::uint64_t id_ = 0;
  bool unanswered_ = false;
};

// CLOCK_BOOTTIME `seconds` from now, in ns.
std::uint64_t deadline_after_s(std::uint64_t seconds);

// The common case: connects, asks, returns the reply, all within --timeout. A list that does not fit one frame comes in
// several (more = true) and is put together here.
Result<api::ServerFrame> ask(Context& context, const api::ClientFrame& request, api::ServerFrame::BodyCase expected);

// "interrupted": what every wait returns after Ctrl-C. Interrupt::caught() tells it from a time-out.
tl::unexpected<Error> interrupted();

}  // namespace usblease::cli
