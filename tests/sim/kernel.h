// Simulated time, chance, hosts and processes. One Kernel is one run: nothing in a run reads anything but its seed.
//
// Product code runs here unchanged. It reaches the outside through a few functions (common/boottime.h, main_loop.h,
// log.h, random_hex), which seam_common.cc implements on the kernel: for them "this process" is Kernel::current().
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace usblease::sim {

using Ns = std::uint64_t;
inline constexpr Ns kMs = 1'000'000;
inline constexpr Ns kSecond = 1'000 * kMs;

// SplitMix64: the same numbers on every machine, which the standard library's distributions do not promise.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::uint64_t below(std::uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  std::uint64_t between(std::uint64_t least, std::uint64_t most) { return least + below(most - least + 1); }
  // True `permille` times in a thousand.
  bool permille(std::uint64_t permille) { return below(1000) < permille; }

 private:
  std::uint64_t state_;
};

// A machine, with a clock of its own that runs `rate_ppm` too fast.
struct Machine {
  std::string id;
  std::int64_t rate_ppm = 0;
  Ns booted_true_ns = 0;   // on the kernel's clock
  Ns booted_local_ns = 0;  // what CLOCK_BOOTTIME said then
  std::string boot_id;
  bool frozen = false;

  [[nodiscard]] Ns local(Ns true_ns) const;
  // The true instant at which the clock here shows `local_ns` or more.
  [[nodiscard]] Ns true_at(Ns local_ns) const;
  // The clock's rate changes now, and its reading does not jump.
  void set_rate(Ns true_ns, std::int64_t ppm);
};

// A process: what is due in it waits while it, or its machine, is frozen, and never happens once it is dead.
struct Process {
  Machine* machine = nullptr;
  std::string name;
  bool dead = false;
  bool frozen = false;
  std::vector<std::function<void()>> held;  // what became due while it was frozen, in order
  [[nodiscard]] bool runs() const { return !dead && !frozen && !machine->frozen; }
};

// An end of something that product code holds as a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  virtual ~Descriptor() = default;
  // The last holder closed it (or died).
  virtual void closed() = 0;
};

class Kernel {
 public:
  explicit Kernel(std::uint64_t seed);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // The one that runs in this thread; product code has no other way to it.
  static Kernel& get();

  [[nodiscard]] Ns now() const { return now_; }
  Chance& chance() { return chance_; }

  Machine& add_machine(const std::string& id);
  Process& add_process(Machine& machine, const std::string& name);
  void kill(Process& process);
  void freeze(Process& process) { process.frozen = true; }
  void thaw(Process& process);
  void freeze(Machine& machine) { machine.frozen = true; }
  void thaw(Machine& machine);

  // nullptr: the world itself, which never dies.
  [[nodiscard]] Process* current() const { return current_; }
  // Runs `body` as that process.
  void run_in(Process* process, const std::function<void()>& body);

  void at(Ns when, Process* process, std::function<void()> event);
  void after(Ns delay, Process* process, std::function<void()> event) { at(now_ + delay, process, std::move(event)); }

  // Runs events up to and including `until`, `step` after each. Stops at the first failure.
  void run_until(Ns until, const std::function<void()>& step);
  // False: nothing is left to run.
  bool run_one();

  int add_descriptor(std::shared_ptr<Descriptor> descriptor);
  [[nodiscard]] std::shared_ptr<Descriptor> descriptor(int fd) const;
  // False: not one of ours.
  bool close_descriptor(int fd);

  void set_trace(std::FILE* out) { trace_ = out; }
  void set_story(std::vector<std::string>* lines) { story_ = lines; }
  [[nodiscard]] bool traces() const { return trace_ != nullptr || story_ != nullptr; }
  void trace(const std::string& who, const std::string& what);
  // What must never happen has happened. Only the first counts.
  void fail(const std::string& what);
  [[nodiscard]] const std::string& failure() const { return failure_; }

  [[nodiscard]] std::uint64_t events() const { return events_run_; }
  // Of every event that ran, and when: equal digests are equal runs.
  [[nodiscard]] std::uint64_t digest() const { return digest_; }

 private:
  struct Event {
    Ns when;
    std::uint64_t seq;
    Process* process;
    std::function<void()> run;
  };
  static bool later(const Event& a, const Event& b) { return a.when != b.when ? a.when > b.when : a.seq > b.seq; }
  void release_held(Process& process);

  Ns now_ = 0;
  Chance chance_;
  std::vector<Event> queue_;  // a heap by `later`
  std::uint64_t next_seq_ = 1;
  std::uint64_t events_run_ = 0;
  std::uint64_t at_this_instant_ = 0;
  std::uint64_t digest_ = 1469598103934665603ULL;
  Process* current_ = nullptr;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::map<int, std::shared_ptr<Descriptor>> descriptors_;
  int next_fd_;
  std::FILE* trace_ = nullptr;
  std::vector<std::string>* story_ = nullptr;
  std::string failure_;
};

}  // namespace usblease::sim
