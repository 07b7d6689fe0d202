#include "tests/sim/kernel.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace usblease::sim {
namespace {

constexpr std::int64_t kMillion = 1'000'000;
constexpr int kFirstFd = 0x40000000;                    // no real descriptor is that great
constexpr std::uint64_t kEventsAtOneInstant = 200'000;  // more of them are a loop that never waits

Kernel* g_kernel = nullptr;

Ns scale(Ns value, std::int64_t numerator, std::int64_t denominator, bool up) {
  const auto product = static_cast<unsigned __int128>(value) * static_cast<std::uint64_t>(numerator);
  const auto divisor = static_cast<unsigned __int128>(denominator);
  return static_cast<Ns>((product + (up ? divisor - 1 : 0)) / divisor);
}

}  // namespace

std::uint64_t Chance::next() {
  state_ += 0x9e3779b97f4a7c15ULL;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

Ns Machine::local(Ns true_ns) const {
  return booted_local_ns + scale(true_ns - booted_true_ns, kMillion + rate_ppm, kMillion, false);
}

Ns Machine::true_at(Ns local_ns) const {
  if (local_ns <= booted_local_ns) return booted_true_ns;
  return booted_true_ns + scale(local_ns - booted_local_ns, kMillion, kMillion + rate_ppm, true);
}

void Machine::set_rate(Ns true_ns, std::int64_t ppm) {
  booted_local_ns = local(true_ns);
  booted_true_ns = true_ns;
  rate_ppm = ppm;
}

Kernel::Kernel(std::uint64_t seed) : chance_(seed), next_fd_(kFirstFd) { g_kernel = this; }

Kernel::~Kernel() {
  // What never ran may hold descriptors, whose end belongs to this run.
  for (auto& process : processes_) process->dead = true;
  queue_.clear();
  for (auto& process : processes_) process->held.clear();
  descriptors_.clear();
  g_kernel = nullptr;
}

Kernel& Kernel::get() {
  if (g_kernel == nullptr) std::abort();  // product code outside of a run
  return *g_kernel;
}

Machine& Kernel::add_machine(const std::string& id) {
  auto& machine = machines_.emplace_back(std::make_unique<Machine>());
  machine->id = id;
  return *machine;
}

Process& Kernel::add_process(Machine& machine, const std::string& name) {
  auto& process = processes_.emplace_back(std::make_unique<Process>());
  process->machine = &machine;
  process->name = name;
  return *process;
}

void Kernel::kill(Process& process) {
  process.dead = true;
  process.held.clear();
}

void Kernel::thaw(Process& process) {
  process.frozen = false;
  release_held(process);
}

void Kernel::thaw(Machine& machine) {
  machine.frozen = false;
  for (auto& process : processes_) {
    if (process->machine == &machine) release_held(*process);
  }
}

void Kernel::release_held(Process& process) {
  if (!process.runs()) return;
  for (auto& event : std::exchange(process.held, {})) at(now_, &process, std::move(event));
}

void Kernel::run_in(Process* process, const std::function<void()>& body) {
  Process* const before = std::exchange(current_, process);
  body();
  current_ = before;
}

void Kernel::at(Ns when, Process* process, std::function<void()> event) {
  queue_.push_back({std::max(when, now_), next_seq_++, process, std::move(event)});
  std::push_heap(queue_.begin(), queue_.end(), later);
}

bool Kernel::run_one() {
  if (queue_.empty()) return false;
  std::pop_heap(queue_.begin(), queue_.end(), later);
  Event event = std::move(queue_.back());
  queue_.pop_back();
  at_this_instant_ = event.when == now_ ? at_this_instant_ + 1 : 0;
  if (at_this_instant_ > kEventsAtOneInstant) fail("a loop that never waits");
  now_ = event.when;
  if (event.process != nullptr && event.process->dead) return true;
  if (event.process != nullptr && !event.process->runs()) {
    event.process->held.push_back(std::move(event.run));
    return true;
  }
  ++events_run_;
  digest_ = (digest_ ^ (event.when * 31 + event.seq)) * 1099511628211ULL;
  run_in(event.process, event.run);
  return true;
}

void Kernel::run_until(Ns until, const std::function<void()>& step) {
  while (failure_.empty() && !queue_.empty() && queue_.front().when <= until) {
    run_one();
    step();
  }
  if (failure_.empty()) now_ = std::max(now_, until);
}

int Kernel::add_descriptor(std::shared_ptr<Descriptor> descriptor) {
  descriptors_[next_fd_] = std::move(descriptor);
  return next_fd_++;
}

std::shared_ptr<Descriptor> Kernel::descriptor(int fd) const {
  const auto found = descriptors_.find(fd);
  return found == descriptors_.end() ? nullptr : found->second;
}

bool Kernel::close_descriptor(int fd) {
  if (fd < kFirstFd) return false;
  auto closed = descriptors_.extract(fd);
  if (!closed.empty()) closed.mapped()->closed();
  return true;
}

void Kernel::trace(const std::string& who, const std::string& what) {
  if (!traces()) return;
  char stamp[40];
  std::snprintf(stamp, sizeof stamp, "%10llu.%06llu", static_cast<unsigned long long>(now_ / kSecond),
                static_cast<unsigned long long>(now_ / 1'000 % 1'000'000));
  const std::string line = std::string(stamp) + " " + who + ": " + what;
  if (trace_ != nullptr) std::fprintf(trace_, "%s\n", line.c_str());
  if (story_ != nullptr) story_->push_back(line);
}

void Kernel::fail(const std::string& what) {
  if (!failure_.empty()) return;
  failure_ = what;
  trace("VIOLATED", what);
}

}  // namespace usblease::sim
