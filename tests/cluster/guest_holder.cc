#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <optional>

#include "common/boottime.h"
#include "common/config.h"
#include "common/unix_socket.h"
#include "tests/cluster/guest_stream.h"
#include "tests/cluster/holder.h"

namespace usblease::cluster_test {
namespace {

constexpr std::uint32_t kHookMs = 20'000;
constexpr std::uint32_t kPrepareMaxMs = 25'000;
constexpr std::uint32_t kQuestionMs = 1'000;
constexpr std::uint32_t kLookMs = 20;  // a frozen daemon must not keep the packets back
constexpr std::uint64_t kLookGapNs = 150'000'000;
constexpr std::uint64_t kConnectMaxNs = 3'000'000'000;

// The PID file that libvirt's QEMU driver leaves, with the lock that only this process holds.
std::optional<UniqueFd> lock_pid_file(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const std::string text = std::to_string(getpid()) + "\n";
  const bool done = fd && fcntl(fd.get(), F_SETLK, &lock) == 0 &&
                    write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (!done) return std::nullopt;
  return fd;
}

api::ClientFrame make_hook_call(const HolderOptions& options, const std::string& operation) {
  api::ClientFrame frame;
  api::HookCall& call = *frame.mutable_hook_call();
  call.set_operation(operation);
  call.set_guest_name(options.name);
  call.set_guest_uuid(options.uuid);
  call.set_domain_id(-1);
  call.set_invoked_boottime_ns(boottime_now_ns());
  call.set_libvirtd_pid(getpid());
  call.set_libvirtd_start_ticks(process_start_ticks(getpid()).value_or(0));
  call.set_deadline_ms(kHookMs);
  return frame;
}

class Guest {
 public:
  explicit Guest(const HolderOptions& options)
      : options_(options), log_(options.history_path, options.name), client_(options.socket_path) {}

  int run() {
    if (const int code = prepare(); code != 0) return code;
    const auto pid_file = lock_pid_file(options_.pid_dir + "/" + options_.name + ".pid");
    if (!pid_file) {
      std::perror("the PID file");
      return 2;
    }
    (void)client_.ask(hook_call("started"), kQuestionMs);  // its failure is nothing to libvirt
    begin_connecting();
    const std::uint64_t end_ns =
        options_.hold_ms == 0 ? UINT64_MAX : monotonic_now_ns() + options_.hold_ms * std::uint64_t{1'000'000};
    while (!held_.empty() && !told_to_end() && monotonic_now_ns() < end_ns) step();
    for (const auto& [device, held] : held_) note("leaving", device, held.token);
    return 0;
  }

 private:
  struct Held {
    std::uint64_t token = 0;
    std::uint64_t give_up_ns = 0;  // when no stream has begun by then
    std::uint64_t lines = 0;
    std::uint64_t deadline_ns = 0;  // as last seen
    std::unique_ptr<GuestStream> stream;
  };

  void note(const char* event, const std::string& device, std::uint64_t token) {
    log_.write(event, {{"guest", options_.uuid}, {"device", device}}, {{"token", token}});
  }

  api::ClientFrame hook_call(const std::string& operation) const {
    api::ClientFrame frame = make_hook_call(options_, operation);
    api::HookCall& call = *frame.mutable_hook_call();
    call.set_domain_id(getpid());
    for (const std::string& device : options_.devices) {
      api::Declared& declared = *call.add_devices();
      declared.set_device(device);
      declared.set_how(api::DECLARATION_REDIRDEV);
      declared.set_required(true);
      declared.set_wait_s((options_.wait_ms + 999) / 1000);
    }
    return frame;
  }

  int prepare() {
    for (const std::string& device : options_.devices) note("acquire", device, 0);
    const auto answer = client_.ask(hook_call("prepare"), kPrepareMaxMs);
    if (!answer) return failed("unknown", answer.error().message, 4);
    if (answer->status().code() != command::CODE_OK) return failed("refused", answer->status().message(), 3);
    for (const std::string& device : options_.devices) {
      const auto token = token_of(device);
      if (!token) return failed("unknown", "granted, but it ended before its token was known", 4);
      held_[device].token = *token;
      note("granted", device, *token);
    }
    const auto started = client_.ask(hook_call("start"), kQuestionMs);
    if (!started) return failed("unknown", started.error().message, 4);
    return started->status().code() == command::CODE_OK ? 0 : failed("refused", started->status().message(), 3);
  }

  int failed(const char* event, const std::string& why, int code) {
    log_.write(event, {{"guest", options_.uuid}, {"why", why}});
    return code;
  }

  std::optional<api::DeviceView> look_at(const std::string& device, std::uint32_t timeout_ms) {
    api::ClientFrame frame;
    frame.mutable_device_info()->set_device(device);
    const auto answer = client_.ask(std::move(frame), timeout_ms);
    if (!answer || answer->status().code() != command::CODE_OK) return std::nullopt;
    return answer->device_info().device();
  }

  std::optional<std::uint64_t> token_of(const std::string& device) {
    const auto view = look_at(device, kQuestionMs);
    if (!view || view->device().lease().start().guest_uuid() != options_.uuid) return std::nullopt;
    return view->device().lease().token();
  }

  void begin_connecting() {
    for (auto& [device, held] : held_)
      held.give_up_ns = options_.connects ? monotonic_now_ns() + kConnectMaxNs : UINT64_MAX;
  }

  // QEMU connects once. Here the socket may be late, or its daemon be killed just now.
  void try_connect(const std::string& device, Held& held) {
    auto fd = connect_unix(guest_socket_path(options_.run_dir, options_.uuid, device), 100, SOCK_STREAM);
    if (!fd) return;
    held.stream = std::make_unique<GuestStream>(std::move(*fd));
    note("connected", device, held.token);
  }

  void step() {
    std::vector<pollfd> polled;
    for (auto& [device, held] : held_) {
      if (!held.stream && options_.connects) try_connect(device, held);
      if (held.stream) polled.push_back({held.stream->fd(), POLLIN, 0});
    }
    const std::uint64_t next_ns = next_line_ns_;
    const std::uint64_t now_ns = monotonic_now_ns();
    const int wait_ms = next_ns > now_ns ? static_cast<int>((next_ns - now_ns) / 1'000'000) + 1 : 0;
    (void)poll(polled.data(), polled.size(), wait_ms);
    const bool due = monotonic_now_ns() >= next_line_ns_;
    if (due) next_line_ns_ = monotonic_now_ns() + options_.packet_ms * std::uint64_t{1'000'000};
    for (auto held = held_.begin(); held != held_.end();) {
      held = move(held->first, held->second, due) ? std::next(held) : held_.erase(held);
    }
    look();
  }

  // False: this device is gone.
  bool move(const std::string& device, Held& held, bool due) {
    if (!held.stream) {
      if (monotonic_now_ns() < held.give_up_ns) return true;
      note("no-stream", device, held.token);
      return false;
    }
    held.stream->pump();
    if (held.stream->ended()) {
      log_.write("closed", {{"guest", options_.uuid}, {"device", device}},
                 {{"token", held.token}, {"lines", held.lines}, {"completed", held.stream->completed()}});
      return false;
    }
    if (due && held.stream->device_seen() && !held.stream->has_output()) {
      held.stream->write_line("hold " + options_.uuid + " " + std::to_string(held.token) + " " +
                              std::to_string(++held.lines));
    }
    return true;
  }

  // Writes renewals down: the device's deadline has moved on.
  void look() {
    if (held_.empty() || monotonic_now_ns() < next_look_ns_) return;
    next_look_ns_ = monotonic_now_ns() + kLookGapNs;
    auto& [device, held] = *held_.begin();
    const auto view = look_at(device, kLookMs);
    if (!view) next_look_ns_ += 3 * kLookGapNs;
    const bool ours = view && view->device().lease().token() == held.token;
    if (!ours || view->deadline_boottime_ns() <= held.deadline_ns) return;
    held.deadline_ns = view->deadline_boottime_ns();
    const std::uint64_t offset_ns = boottime_now_ns() - monotonic_now_ns();
    log_.write("renewed", {{"guest", options_.uuid}, {"device", device}},
               {{"token", held.token}, {"deadline_ns", held.deadline_ns - offset_ns}});
  }

  const HolderOptions& options_;
  HistoryLog log_;
  DaemonClient client_;
  std::map<std::string, Held> held_;
  std::uint64_t next_line_ns_ = 0;
  std::uint64_t next_look_ns_ = 0;
};

}  // namespace

int run_guest(const HolderOptions& options) { return Guest(options).run(); }

int run_ended(const HolderOptions& options) {
  DaemonClient client(options.socket_path);
  while (!told_to_end()) {
    const auto answer = client.ask(make_hook_call(options, "stopped"), kQuestionMs);
    if (answer && answer->status().code() == command::CODE_OK) return 0;
    sleep_ms(kQuestionMs / 10);
  }
  return 1;
}

}  // namespace usblease::cluster_test
