// The few functions through which product code reaches clock, loop, log and randomness, on the simulated kernel.
// They replace common/boottime.cc, main_loop.cc, log.cc and random.cc at link time.
#include <unistd.h>

#include <array>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "common/random.h"
#include "common/text.h"
#include "tests/sim/kernel.h"
#include "tests/sim/world.h"

extern "C" int __real_close(int fd);
// The linker sends every close() of the simulator here (-Wl,--wrap=close): a simulated descriptor has a simulated end.
extern "C" int __wrap_close(int fd) {
  if (fd >= 0x40000000) return usblease::sim::Kernel::get().close_descriptor(fd) ? 0 : -1;
  return __real_close(fd);
}

namespace usblease {

using sim::Kernel;

namespace {

constexpr std::uint64_t kUnixAtStart = 1'790'000'000;

// What a SourceHandle holds; the GSource that the header names does not exist here.
struct Timer {
  int holders = 2;  // the handle and the event
  bool cancelled = false;
};

void drop(Timer* timer) {
  if (--timer->holders == 0) delete timer;
}

class TimerEvent {
 public:
  TimerEvent(Timer* timer, std::function<void()> callback) : timer_(timer), callback_(std::move(callback)) {}
  TimerEvent(const TimerEvent& other) : timer_(other.timer_), callback_(other.callback_) { ++timer_->holders; }
  TimerEvent(TimerEvent&& other) noexcept
      : timer_(std::exchange(other.timer_, nullptr)), callback_(std::move(other.callback_)) {}
  TimerEvent& operator=(const TimerEvent&) = delete;
  TimerEvent& operator=(TimerEvent&&) = delete;
  ~TimerEvent() {
    if (timer_ != nullptr) drop(timer_);
  }
  void operator()() {
    if (!timer_->cancelled) callback_();
  }

 private:
  Timer* timer_;
  std::function<void()> callback_;
};

}  // namespace

std::uint64_t boottime_now_ns() {
  const Kernel& kernel = Kernel::get();
  const sim::Process* process = kernel.current();
  return process == nullptr ? kernel.now() : process->machine->local(kernel.now());
}

std::uint64_t wall_clock_unix_s() { return kUnixAtStart + Kernel::get().now() / sim::kSecond; }

Result<std::uint64_t> process_start_ticks(int pid) {
  if (!sim::World::get().process_lives(pid)) return fail(ErrorCode::kNotFound, "that process is gone");
  return static_cast<std::uint64_t>(pid);
}

SourceHandle::SourceHandle(SourceHandle&& other) noexcept : source_(std::exchange(other.source_, nullptr)) {}

SourceHandle& SourceHandle::operator=(SourceHandle&& other) noexcept {
  if (this != &other) {
    cancel();
    source_ = std::exchange(other.source_, nullptr);
  }
  return *this;
}

void SourceHandle::cancel() {
  auto* timer = reinterpret_cast<Timer*>(std::exchange(source_, nullptr));
  if (timer == nullptr) return;
  timer->cancelled = true;
  drop(timer);
}

SourceHandle run_after(std::uint64_t delay_ns, std::function<void()> callback) {
  Kernel& kernel = Kernel::get();
  auto* timer = new Timer;
  sim::Process* process = kernel.current();
  const sim::Ns when = process == nullptr ? kernel.now() + delay_ns
                                          : process->machine->true_at(process->machine->local(kernel.now()) + delay_ns);
  kernel.at(when, process, TimerEvent(timer, std::move(callback)));
  return SourceHandle(reinterpret_cast<GSource*>(timer));
}

void post(std::function<void()> callback) {
  Kernel& kernel = Kernel::get();
  kernel.at(kernel.now(), kernel.current(), std::move(callback));
}

std::uint64_t random_bits() { return Kernel::get().chance().next(); }

std::string random_hex(std::size_t bytes) {
  constexpr std::array<char, 17> kDigits{"0123456789abcdef"};
  std::string out;
  for (std::size_t i = 0; i < 2 * bytes; ++i) out += kDigits[Kernel::get().chance().below(16)];
  return out;
}

namespace log {

void write(Level level, std::string_view message, Fields fields) {
  Kernel& kernel = Kernel::get();
  if (!kernel.traces() || level == Level::kDebug) return;
  std::string line = level >= Level::kWarning ? "! " : "";
  line += message;
  for (const auto& [name, value] : fields) {
    if (!value.empty()) line += std::string(" ") + name + "=\"" + escape_text(value) + "\"";
  }
  const sim::Process* process = kernel.current();
  kernel.trace(process == nullptr ? "world" : process->name, line);
}

}  // namespace log
}  // namespace usblease
