// usblease-relay: see invocation.h for how it is started and docs/relay.md for what it guarantees.
#include <getopt.h>
#include <poll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "common/boottime.h"
#include "common/log.h"
#include "common/sanitized.h"
#include "common/text.h"
#include "daemon/relay/control.h"
#include "daemon/relay/invocation.h"
#include "daemon/relay/sandbox.h"
#include "daemon/relay/stream.h"

namespace usblease::relay {
namespace {

constexpr int kExitUsage = 2;
constexpr int kExitSandbox = 3;

struct Arguments {
  Hello hello;
  SandboxOptions sandbox;
};

Result<std::uint64_t> parse_number(const char* option, std::string_view text, std::uint64_t most) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number > most) {
    return fail(ErrorCode::kBadInput, std::string("--") + option + ": \"" + escape_text(text.substr(0, 64)) +
                                          "\" is not a number from 0 to " + std::to_string(most));
  }
  return number;
}

enum Option : int { kDevice, kToken, kGuest, kInstance, kPeerPid, kDeadline, kUid, kGid, kOptionCount };

constexpr std::array<option, kOptionCount + 1> kOptions{{{"device", required_argument, nullptr, kDevice},
                                                         {"token", required_argument, nullptr, kToken},
                                                         {"guest", required_argument, nullptr, kGuest},
                                                         {"instance", required_argument, nullptr, kInstance},
                                                         {"peer-pid", required_argument, nullptr, kPeerPid},
                                                         {"deadline-ns", required_argument, nullptr, kDeadline},
                                                         {"uid", required_argument, nullptr, kUid},
                                                         {"gid", required_argument, nullptr, kGid},
                                                         {nullptr, 0, nullptr, 0}}};

Result<void> take_text(Option which, const char* text, Arguments* out) {
  if (which == kDevice) {
    if (!is_device_name(text)) {
      return fail(ErrorCode::kBadInput, "--device: \"" + escape_text(text) + "\" is not a device name");
    }
    out->hello.set_device(text);
    return {};
  }
  auto uuid = parse_uuid(text);
  if (!uuid) return fail(ErrorCode::kBadInput, "--guest: " + uuid.error().message);
  out->hello.set_guest_uuid(*uuid);
  return {};
}

Result<void> take(Option which, const char* text, Arguments* out) {
  if (which == kDevice || which == kGuest) return take_text(which, text, out);
  constexpr std::uint64_t kPidMax = std::numeric_limits<std::int32_t>::max();
  constexpr std::uint64_t kIdMax = std::numeric_limits<uid_t>::max() - 1;  // the last one means "leave as it is"
  const std::uint64_t most =
      which == kPeerPid ? kPidMax : (which == kUid || which == kGid ? kIdMax : ~std::uint64_t{0});
  const auto number = parse_number(kOptions[static_cast<std::size_t>(which)].name, text, most);
  if (!number) return tl::unexpected(number.error());
  if (which == kToken) out->hello.set_token(*number);
  if (which == kInstance) out->hello.set_instance(*number);
  if (which == kPeerPid) out->hello.set_peer_pid(static_cast<std::int32_t>(*number));
  if (which == kDeadline) out->hello.set_deadline_ns(*number);
  if (which == kUid) out->sandbox.uid = static_cast<uid_t>(*number);
  if (which == kGid) out->sandbox.gid = static_cast<gid_t>(*number);
  return {};
}

Result<Arguments> parse_arguments(int argc, char** argv) {
  Arguments out;
  std::array<bool, kOptionCount> given{};
  opterr = 0;
  for (;;) {
    const int which = getopt_long(argc, argv, "", kOptions.data(), nullptr);
    if (which == -1) break;
    if (which < 0 || which >= kOptionCount) return fail(ErrorCode::kBadInput, "an unknown or incomplete option");
    if (auto taken = take(static_cast<Option>(which), optarg, &out); !taken) return tl::unexpected(taken.error());
    given[static_cast<std::size_t>(which)] = true;
  }
  if (optind != argc) return fail(ErrorCode::kBadInput, "an argument that is not an option");
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (!given[i]) return fail(ErrorCode::kBadInput, std::string("--") + kOptions[i].name + " is missing");
  }
  out.hello.set_version(kRelayProtocol);
  return out;
}

// The daemon's service being stopped, a terminal's hang-up, a write to who has gone: none of them ends a lease.
void ignore_signals() {
  for (const int signal_number : {SIGPIPE, SIGHUP, SIGINT, SIGQUIT, SIGTERM}) std::signal(signal_number, SIG_IGN);
}

// A timer that is armed for `at_ns`, CLOCK_BOOTTIME; 0 disarms it. Absolute, so that it is right across suspend.
void arm(int timer, std::uint64_t at_ns) {
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(std::min<std::uint64_t>(at_ns / 1'000'000'000, 1ULL << 40U));
  when.it_value.tv_nsec = static_cast<long>(at_ns % 1'000'000'000);
  if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, nullptr) != 0) std::abort();  // only wrong arguments can fail
}

// A plain poll loop, not GLib's: five descriptors and one timer need no more, and what it does between the clock and
// the write can be read here. It also allocates nothing, which keeps the seccomp filter short.
void serve(Stream* stream, Control* control, int timer) {
  std::uint64_t armed_ns = 0;
  while (!control->acknowledged()) {
    if (const std::uint64_t next_ns = stream->next_tick_ns(); next_ns != armed_ns) arm(timer, armed_ns = next_ns);
    std::array<pollfd, 5> ready{{{stream->fd(Side::kGuest), stream->poll_events(Side::kGuest), 0},
                                 {stream->fd(Side::kEndpoint), stream->poll_events(Side::kEndpoint), 0},
                                 {timer, POLLIN, 0},
                                 {control->listener(), POLLIN, 0},
                                 {control->connection(), POLLIN, 0}}};
    if (poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) std::abort();
    stream->tick();
    std::uint64_t expirations = 0;
    if (ready[2].revents != 0 && read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) std::abort();
    // The daemon before the streams: what follows a revocation must not pass.
    if (ready[4].revents != 0) control->on_message();
    if (ready[3].revents != 0) control->on_connect();
    stream->on_ready(Side::kGuest, ready[0].revents);
    stream->on_ready(Side::kEndpoint, ready[1].revents);
    control->report();
  }
}

void log_end(const Stream& stream, const Hello& hello) {
  const auto& end = stream.ended();
  log::info("fenced and acknowledged: " + (end ? end->detail : std::string()),
            {{"DEVICE", hello.device()}, {"TOKEN", std::to_string(hello.token())}});
}

int run(int argc, char** argv) {
  log::setup("usblease-relay", log::Level::kInfo);
  ignore_signals();
  const auto arguments = parse_arguments(argc, argv);
  if (!arguments) {
    log::error(arguments.error().message + "; this program is started by usbleased, see daemon/relay/invocation.h");
    return kExitUsage;
  }
  if (const auto same_time = check_time_namespace(); !same_time) {
    log::error(same_time.error().message);
    return kExitSandbox;
  }
  const uid_t starting_uid = getuid();
  auto entered = close_descriptors_above(kControlFd);
  const UniqueFd timer(timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (entered && !timer) entered = fail_errno("timerfd_create", errno);
  if (entered) entered = enter_sandbox(arguments->sandbox);
  if (!entered) {
    log::error("the sandbox cannot be entered, so nothing is relayed: " + entered.error().message);
    return kExitSandbox;
  }
  // Not a byte of either stream has been looked at so far.
  StreamOptions options;
  options.deadline_ns = arguments->hello.deadline_ns();
  Stream stream(UniqueFd(kGuestFd), UniqueFd(kEndpointFd), options, boottime_now_ns);
  Control control(UniqueFd(kControlFd), arguments->hello, starting_uid, &stream);
  serve(&stream, &control, timer.get());
  log_end(stream, arguments->hello);
  return 0;
}

}  // namespace
}  // namespace usblease::relay

#if USBLEASE_SANITIZED
// The leak check at the exit traces this process from a thread of its own, which the sandbox does not allow.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }  // NOLINT: the sanitizer's name
#endif

int main(int argc, char** argv) { return usblease::relay::run(argc, argv); }
