// Runs a command for as long as this host holds a named lock. The deadline is kept here, by this process and its guard:
// neither the daemon nor the cluster is needed to end the command in time.
#include <glib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <optional>

#include "cli/command_group.h"
#include "cli/connection.h"
#include "cli/deadline_guard.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "common/boottime.h"
#include "common/text.h"

namespace usblease::cli {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kNsPerS = 1'000 * kNsPerMs;
constexpr std::uint64_t kReconnectNs = 100 * kNsPerMs;
constexpr std::uint64_t kHelloNs = 200 * kNsPerMs;
constexpr std::uint64_t kUnlockNs = 2 * kNsPerS;
constexpr std::uint64_t kKillWithinNs = 5 * kNsPerS;
constexpr std::size_t kHolderBytesMax = 64;
constexpr std::uint8_t kLost = 124;  // as timeout(1) has it

enum class Event : std::uint8_t { kDaemon, kCommand, kSignal, kDeadline, kReconnect };

// The name of the program, for people: "flash.sh[4711]".
std::string holder_text(const std::string& program) {
  std::string text = escape_text(program.substr(program.rfind('/') + 1)).substr(0, kHolderBytesMax);
  while (g_utf8_validate(text.data(), static_cast<gssize>(text.size()), nullptr) == FALSE) text.pop_back();
  return text + "[" + std::to_string(getpid()) + "]";
}

// What can happen while the command runs, in one descriptor.
class Events {
 public:
  Events() : epoll_(epoll_create1(EPOLL_CLOEXEC)), deadline_(make_timer()), reconnect_(make_timer()) {
    sigset_t forwarded;
    sigemptyset(&forwarded);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaddset(&forwarded, number);
    pthread_sigmask(SIG_BLOCK, &forwarded, &before_);
    signals_.reset(signalfd(-1, &forwarded, SFD_CLOEXEC | SFD_NONBLOCK));
    add(signals_.get(), Event::kSignal);
    add(deadline_.get(), Event::kDeadline);
    add(reconnect_.get(), Event::kReconnect);
  }
  ~Events() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  void add(int fd, Event event) {
    epoll_event wanted{};
    wanted.events = EPOLLIN;
    wanted.data.u32 = static_cast<std::uint32_t>(event);
    ok_ = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &wanted) == 0 && ok_;
  }
  // Of CLOCK_BOOTTIME, which goes on while the machine sleeps.
  void set_deadline(std::uint64_t at_ns) { set(deadline_.get(), at_ns); }
  void reconnect_at(std::uint64_t at_ns) { set(reconnect_.get(), at_ns); }
  [[nodiscard]] bool usable() const { return ok_; }

  // The deadline first: nothing that a daemon says late, and no signal, comes before it.
  Event wait() {
    for (;;) {
      std::array<epoll_event, 8> ready{};
      const int count = epoll_wait(epoll_.get(), ready.data(), ready.size(), -1);
      if (count <= 0) continue;
      auto first = Event::kReconnect;
      for (int i = 0; i < count; ++i) {
        const auto event = static_cast<Event>(ready.at(static_cast<std::size_t>(i)).data.u32);
        if (event == Event::kDeadline) return event;
        first = std::min(first, event);
      }
      if (first == Event::kReconnect) set(reconnect_.get(), 0);
      return first;
    }
  }
  std::optional<signalfd_siginfo> next_signal() {
    signalfd_siginfo info{};
    if (read(signals_.get(), &info, sizeof info) != sizeof info) return std::nullopt;
    return info;
  }

 private:
  static int make_timer() { return timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK); }
  // 0: never.
  static void set(int fd, std::uint64_t at_ns) {
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(at_ns / kNsPerS);
    when.it_value.tv_nsec = static_cast<long>(at_ns % kNsPerS);
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, nullptr);
  }

  UniqueFd epoll_;
  UniqueFd deadline_;
  UniqueFd reconnect_;
  UniqueFd signals_;
  sigset_t before_{};
  bool ok_ = true;
};

class LockRun {
 public:
  LockRun(const Invocation& invocation, Context& context)
      : context_(context),
        name_(invocation.words[0]),
        command_(invocation.words.begin() + 1, invocation.words.end()),
        give_up_ns_(deadline_after_s(invocation.wait_s.value_or(0) + context.globals.timeout_s)),
        line_(context.globals.quiet) {
    auto& lock = *request_.mutable_lock();
    lock.set_request_id(random_hex(16));
    lock.set_nonce(random_hex(8));
    lock.set_name(name_);
    lock.set_holder(holder_text(command_[0]));
    lock.set_wait_ms(static_cast<std::uint32_t>(invocation.wait_s.value_or(0) * 1'000));
    lock.set_priority(invocation.priority.value_or(0));
  }

  Result<void> run() {
    if (auto held = wait_until_held(); !held) return held;
    line_.clear();
    Events events;
    if (!events.usable()) return fail_errno("cannot watch the command", errno);
    auto guard = DeadlineGuard::start(deadline_ns_);
    if (!guard) {
      unlock();
      return tl::unexpected(guard.error());
    }
    guard_.emplace(std::move(*guard));
    auto started =
        CommandGroup::start(command_, {{"USBLEASE_LOCK", name_}, {"USBLEASE_TOKEN", std::to_string(token_)}}, *guard_);
    if (!started) {
      context_.exit_code = started.error().code == ErrorCode::kNotFound ? 127 : 126;
      guard_.reset();
      unlock();
      return tl::unexpected(started.error());
    }
    CommandGroup group = std::move(*started);
    if (!group.why_no_cgroup().empty() && !context_.globals.quiet)
      print_warning("no cgroup can be made here (" + group.why_no_cgroup() + "), so " + command_[0] +
                    " runs in a process group");
    Result<void> watched = watch(events, group);
    const bool all_ended = group.kill_all(boottime_now_ns() + kKillWithinNs);
    context_.exit_code = watched ? static_cast<std::uint8_t>(group.exit_code()) : kLost;
    if (!all_ended)
      return fail(ErrorCode::kInternal, "something that " + command_[0] + " started cannot be killed; the lock " +
                                            name_ + " is free when token " + std::to_string(token_) + " has expired");
    guard_.reset();  // before somebody else gets the number of what has ended
    unlock();
    return watched;
  }

 private:
  // --- Until it is held

  Result<void> wait_until_held() {
    for (std::uint64_t pause_ns = kReconnectNs;; pause_ns = std::min(pause_ns * 2, kNsPerS)) {
      auto held = ask_until_held();
      if (held) return held;
      if (context_.interrupt.caught()) return fail(ErrorCode::kTimedOut, "interrupted; the request is cancelled");
      const bool again = asked_ && held.error().code == ErrorCode::kUnavailable;
      if (!again || boottime_now_ns() + pause_ns >= give_up_ns_) return held;
      line_.show("usbleased is away (it hung up, or restarts); asking again under the same request");
      if (context_.interrupt.wait_readable(-1, boottime_now_ns() + pause_ns) == Interrupt::Wake::kInterrupted)
        return fail(ErrorCode::kTimedOut, "interrupted; the request is cancelled");
    }
  }

  Result<void> ask_until_held() {
    const std::uint64_t hello_ns = std::min(give_up_ns_, deadline_after_s(context_.globals.timeout_s));
    auto opened = Connection::open(context_.globals.socket_path, context_.interrupt, hello_ns);
    if (!opened) return tl::unexpected(opened.error());
    connection_.emplace(std::move(*opened));
    if (auto begun = connection_->begin(request_, give_up_ns_); !begun) return begun;
    asked_ = true;
    while (deadline_ns_ <= boottime_now_ns()) {
      const auto frame = connection_->next(api::ServerFrame::kLock, give_up_ns_);
      if (!frame) return tl::unexpected(frame.error());
      if (!*frame) return fail(ErrorCode::kTimedOut, "usbleased did not answer in time; the request is cancelled");
      if (!(*frame)->more()) return fail(ErrorCode::kInternal, "usbleased ended the lock before it began");
      take((*frame)->lock_progress());
      if ((*frame)->lock_progress().token() == 0) show_obstacles((*frame)->lock_progress());
    }
    return {};
  }

  void show_obstacles(const api::LockProgress& progress) {
    api::AttachProgress shown;
    shown.set_stage("queued");
    *shown.mutable_obstacles() = progress.obstacles();
    line_.show(progress_text(shown, "", {name_}, wall_clock_unix_s()));
  }

  void take(const api::LockProgress& progress) {
    if (progress.token() == 0) return;
    token_ = progress.token();
    deadline_ns_ = std::max(deadline_ns_, progress.deadline_boottime_ns());
  }

  // --- While it is held

  // Until the command has ended, or, with why, until it has to be ended.
  Result<void> watch(Events& events, const CommandGroup& group) {
    events.add(group.fd(), Event::kCommand);
    events.add(connection_->fd(), Event::kDaemon);
    events.set_deadline(deadline_ns_);
    for (;;) {
      switch (events.wait()) {
        case Event::kDeadline:
          return lost("its token has expired, and nothing renewed it");
        case Event::kCommand:
          if (guard_->has_struck()) return lost("its deadline passed while this program was stopped");
          return {};
        case Event::kSignal:
          while (const auto signal = events.next_signal()) forward(*signal, group);
          break;
        case Event::kDaemon:
          if (auto said = hear(events); !said) return said;
          break;
        case Event::kReconnect:
          if (auto said = reconnect(events); !said) return said;
          break;
      }
    }
  }

  [[nodiscard]] tl::unexpected<Error> lost(const std::string& why) const {
    return fail(ErrorCode::kUnavailable, "the lock " + name_ + " was lost, and " + command_[0] + " was killed: " + why);
  }

  // What the terminal sends reaches the command by itself, unless it has a process group of its own.
  static void forward(const signalfd_siginfo& signal, const CommandGroup& group) {
    const bool by_somebody = signal.ssi_code <= 0;
    if (by_somebody || !group.why_no_cgroup().empty()) group.signal(static_cast<int>(signal.ssi_signo));
  }

  // All that the daemon has said by now.
  Result<void> hear(Events& events) {
    for (;;) {
      const auto frame = connection_->next(api::ServerFrame::kLock, 0);
      if (frame && !*frame) return {};
      if (frame && (*frame)->more()) {
        take((*frame)->lock_progress());
        events.set_deadline(deadline_ns_);
        guard_->set_deadline(deadline_ns_);
        continue;
      }
      if (frame) return lost("usbleased ended it");
      if (!connection_->unanswered()) return lost(frame.error().message);
      // It hung up. The token is good until its deadline, and a daemon that comes back renews it.
      connection_.reset();
      events.reconnect_at(boottime_now_ns() + kReconnectNs);
      return {};
    }
  }

  Result<void> reconnect(Events& events) {
    const std::uint64_t until_ns = std::min(deadline_ns_, boottime_now_ns() + kHelloNs);
    auto opened = Connection::open(context_.globals.socket_path, context_.interrupt, until_ns);
    if (opened && opened->begin(request_, until_ns)) {
      connection_.emplace(std::move(*opened));
      events.add(connection_->fd(), Event::kDaemon);
    } else {
      events.reconnect_at(boottime_now_ns() + kReconnectNs);
    }
    return {};
  }

  // --- When all of it has ended

  // Without an answer the lock is free once its token has expired, so nothing is waited for much longer than that.
  void unlock() {
    const std::uint64_t until_ns = std::max(deadline_ns_, boottime_now_ns() + kUnlockNs);
    const auto done = ask_unlock(until_ns);
    if (done || done.error().code == ErrorCode::kNotFound || context_.globals.quiet) return;
    print_warning("the lock " + name_ + " is free when token " + std::to_string(token_) +
                  " has expired: " + done.error().message);
  }

  Result<void> ask_unlock(std::uint64_t until_ns) {
    auto connection = Connection::open(context_.globals.socket_path, context_.interrupt, until_ns);
    if (!connection) return tl::unexpected(connection.error());
    api::ClientFrame request;
    request.mutable_unlock()->set_request_id(request_.lock().request_id());
    const auto reply = connection->call(request, api::ServerFrame::kUnlock, until_ns, {});
    if (!reply) return tl::unexpected(reply.error());
    return {};
  }

  Context& context_;
  const std::string name_;
  const std::vector<std::string> command_;
  const std::uint64_t give_up_ns_;
  api::ClientFrame request_;
  ProgressLine line_;
  std::optional<Connection> connection_;
  std::optional<DeadlineGuard> guard_;
  bool asked_ = false;
  std::uint64_t token_ = 0;
  std::uint64_t deadline_ns_ = 0;
};

}  // namespace

Result<void> verb_lock(const Invocation& invocation, Context& context) { return LockRun(invocation, context).run(); }

}  // namespace usblease::cli
