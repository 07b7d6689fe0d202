#include "daemon/fencer/guard.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "common/boottime.h"
#include "common/fd.h"
#include "common/log.h"
#include "daemon/fencer/classify.h"
#include "plugin/bpf/loader.h"
#include "plugin/bpf/refusals.h"

namespace usblease::fencer {
namespace {

constexpr int kPriority = 10;
constexpr std::uint64_t kNsPerS = 1'000'000'000;

void log_refusal(const fence::Refusal& refusal) {
  log::warning("refused " + std::string(refusal.open ? "to open" : "a call on") + " USB device " +
                   fence::to_text(refusal.device) + " to " + refusal.program + " (process " +
                   std::to_string(refusal.pid) + ", uid " + std::to_string(refusal.uid) + "): " + refusal.reason,
               {{"TOKEN", std::to_string(refusal.token)}});
}

Result<UniqueFd> catch_end() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (const int error = pthread_sigmask(SIG_BLOCK, &signals, nullptr); error != 0) return fail_errno("signals", error);
  UniqueFd fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return fail_errno("signalfd", errno);
  return fd;
}

Result<void> arm_timer(const UniqueFd& timer, std::uint64_t at_ns) {
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(at_ns / kNsPerS);
  when.it_value.tv_nsec = static_cast<long>(at_ns % kNsPerS);
  if (timerfd_settime(timer.get(), TFD_TIMER_ABSTIME, &when, nullptr) != 0) return fail_errno("timerfd", errno);
  return {};
}

// Until a signal says that it is enough.
Result<void> watch(Guard* guard, fence::Refusals* refusals, const UniqueFd& end, const UniqueFd& timer) {
  for (;;) {
    const auto next_ns = guard->look();
    if (!next_ns) return tl::unexpected(next_ns.error());
    if (auto drained = refusals->drain(); !drained) return drained;
    if (auto armed = arm_timer(timer, *next_ns); !armed) return armed;
    std::array<pollfd, 2> ready{{{timer.get(), POLLIN, 0}, {end.get(), POLLIN, 0}}};
    if (poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) return fail_errno("poll", errno);
    if (ready[1].revents != 0) return {};
  }
}

}  // namespace

Result<std::unique_ptr<Guard>> Guard::make(fence::KernelFence fence, Binding binding) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): its constructor is private
  std::unique_ptr<Guard> guard(new Guard(std::move(fence), std::move(binding)));
  for (std::size_t i = 0; i < kWorkers; ++i) {
    auto worker = Worker::make(guard->binding_);
    if (!worker) return tl::unexpected(worker.error());
    guard->workers_.push_back(std::move(*worker));
  }
  return guard;
}

bool Guard::is_due(const fence::Managed& managed, std::uint64_t now_ns) const {
  if (managed.grant.deadline_ns > now_ns) return false;
  const auto port = binding_.port_of(managed.device);
  return port && binding_.is_bound(*port);
}

void Guard::begin(const fence::Managed& managed) {
  Worker* idle = nullptr;
  for (const auto& worker : workers_) {
    const auto device = worker->device();
    if (device == managed.device) return;  // it is under way
    if (device == 0 && idle == nullptr) idle = worker.get();
  }
  if (idle != nullptr) idle->unbind(managed);
}

Result<std::uint64_t> Guard::look() {
  const auto table = fence_.managed();
  if (!table) return tl::unexpected(table.error());
  const std::uint64_t now_ns = boottime_now_ns();
  std::uint64_t next_ns = now_ns + kLookEveryNs;
  for (const fence::Managed& managed : *table) {
    if (is_due(managed, now_ns)) begin(managed);
    if (managed.grant.deadline_ns > now_ns) next_ns = std::min(next_ns, managed.grant.deadline_ns);
  }
  return next_ns;
}

void claim_resources() {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
    log::warning(std::string("its memory cannot be locked (") + strerror(errno) +
                 "): when the host is short of memory, an unbinding may come late; the kernel's fence does not");
  }
  sched_param priority{};
  priority.sched_priority = kPriority;
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0) {
    log::warning(std::string("no real-time priority (") + strerror(errno) +
                 "): when the host is busy, an unbinding may come late; the kernel's fence does not");
  }
}

Result<void> serve() {
  const auto end = catch_end();  // before the first thread, which inherits it
  if (!end) return tl::unexpected(end.error());
  const UniqueFd timer(timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC));
  if (!timer) return fail_errno("timerfd", errno);
  auto fence = fence::load_fence();
  if (!fence) return tl::unexpected(fence.error());
  auto refusals = fence::Refusals::open(log_refusal);
  if (!refusals) return tl::unexpected(refusals.error());
  claim_resources();
  auto guard = Guard::make(std::move(*fence), Binding());
  if (!guard) return tl::unexpected(guard.error());
  // What was there before udev knew of us. A bad configuration is no reason not to tend what is in the table.
  if (const auto classified = classify_host(); !classified) log::error(classified.error().message);
  log::info("every managed device without a live lease is unbound from now on");
  auto watched = watch(guard->get(), &*refusals, *end, timer);
  // Not destroyed: a worker may hang in a bad device, and the end of the process ends it.
  static_cast<void>(guard->release());
  return watched;
}

}  // namespace usblease::fencer
