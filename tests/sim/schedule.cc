#include "tests/sim/schedule.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <map>
#include <sstream>
#include <utility>

#include "common/boottime.h"
#include "daemon/lease/core.h"
#include "tests/sim/checks.h"
#include "tests/sim/daemon.h"

namespace usblease::sim {
namespace {

constexpr lease::Timing kFast{1'000, 200, 300, 500};

// The words of one step: those with '=' are settings, the others are names.
class Arguments {
 public:
  explicit Arguments(const std::vector<std::string>& words) {
    for (std::size_t i = 1; i < words.size(); ++i) {
      const auto equals = words[i].find('=');
      if (equals == std::string::npos) {
        names_.push_back(words[i]);
      } else {
        settings_[words[i].substr(0, equals)] = words[i].substr(equals + 1);
      }
    }
  }
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  [[nodiscard]] std::string name(std::size_t index) const { return index < names_.size() ? names_[index] : ""; }
  [[nodiscard]] std::vector<std::string> names_from(std::size_t index) const {
    return {names_.begin() + static_cast<std::ptrdiff_t>(std::min(index, names_.size())), names_.end()};
  }
  [[nodiscard]] bool has(const std::string& name) const {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  }
  [[nodiscard]] std::int64_t number(const std::string& name, std::int64_t otherwise) const {
    const auto found = settings_.find(name);
    if (found == settings_.end()) return otherwise;
    std::int64_t value = otherwise;
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
    return value;
  }
  [[nodiscard]] std::uint64_t count(const std::string& name, std::uint64_t otherwise) const {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(0, number(name, static_cast<std::int64_t>(otherwise))));
  }

 private:
  std::vector<std::string> names_;
  std::map<std::string, std::string> settings_;
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) {
    if (!part.empty()) out.push_back(part);
  }
  return out;
}

// What `restore` and `roll-back` put back; one for each run.
struct Snapshot {
  StoreEngine::Image image;
  bool taken = false;
  std::uint64_t epoch = 0;  // of the last restore
};
Snapshot g_snapshot;

using Act = void (*)(World&, const Arguments&);

void set_network(World& world, const Arguments& a) {
  world.network().faults.lost_permille = a.count("lost", 0);
  world.network().faults.reset_permille = a.count("reset", 0);
  world.network().faults.slow_permille = a.count("slow", 0);
  world.network().faults.delay_max = a.count("delay", 2) * kMs;
}

void set_store(World& world, const Arguments& a) {
  StoreFaults& faults = world.store().faults;
  faults.lost_permille = a.count("lost", 0);
  faults.unheard_permille = a.count("unheard", 0);
  faults.late_permille = a.count("late", 0);
  faults.full_permille = a.count("full", 0);
  faults.early_death_permille = a.count("early-death", 0);
  faults.watch_break_permille = a.count("watch-break", 0);
  faults.latency_max = a.count("latency", 3) * kMs;
}

void set_disk(World& world, const Arguments& a) {
  HostState& host = world.host(a.name(0));
  host.disk_full_permille = a.count("full", 0);
  host.disk_delay_max = a.count("delay", 5) * kMs;
}

// A new epoch in a store from which nobody serves yet, by the lease core itself.
void repair(World& world) {
  auto state = lease::load(world.store().entries());
  if (!state) return world.kernel().fail("the backup does not load: " + state.error().message);
  if (state->meta.format() == 0) *state = lease::make_state(kClusterId);
  g_snapshot.epoch = std::max({wall_clock_unix_s(), g_snapshot.epoch + 1, state->meta.epoch() + 1});
  lease::Core core(std::move(*state));
  command::Command command;
  command.mutable_new_epoch()->set_epoch(g_snapshot.epoch);
  command.mutable_new_epoch()->set_principal("root");
  for (const lease::Change& change : core.apply(command, {wall_clock_unix_s()}).changes)
    world.store().amend(change.key, change.value);
}

// With the repair that belongs to it (docs/store.md), or without: then only the homes can know.
void restore(World& world, bool repaired) {
  if (!g_snapshot.taken) return;
  world.kernel().trace("world", repaired ? "the backup is restored and repaired" : "the store's disks go back in time");
  world.store().restore(g_snapshot.image);
  if (repaired) repair(world);
  world.checks().store_went_back(repaired);
}

struct Verb {
  Act act;
  char first = '-';  // what the first name must be: h host, g guest, d device, - anything
};

const std::map<std::string, Verb>& verbs() {
  static const std::map<std::string, Verb> all = {
      {"attach",
       {[](World& w, const Arguments& a) {
          w.attach(a.name(0), a.names_from(1), static_cast<std::uint32_t>(a.count("wait", 60) * 1'000),
                   a.count("for", 0), static_cast<std::int32_t>(a.number("priority", 0)));
        },
        'g'}},
      {"detach", {[](World& w, const Arguments& a) { w.detach(a.name(0), a.name(1)); }, 'g'}},
      {"start",
       {[](World& w, const Arguments& a) {
          std::vector<std::string> devices = a.names_from(1);
          std::erase(devices, "optional");
          w.start_guest(a.name(0), devices, !a.has("optional"));
        },
        'g'}},
      {"stop", {[](World& w, const Arguments& a) { w.stop_guest(a.name(0), false); }, 'g'}},
      {"crash", {[](World& w, const Arguments& a) { w.stop_guest(a.name(0), true); }, 'g'}},
      {"kill-daemon", {[](World& w, const Arguments& a) { w.kill_daemon(a.name(0)); }, 'h'}},
      {"start-daemon", {[](World& w, const Arguments& a) { w.start_daemon(a.name(0)); }, 'h'}},
      {"freeze-daemon", {[](World& w, const Arguments& a) { w.freeze_daemon(a.name(0)); }, 'h'}},
      {"thaw-daemon", {[](World& w, const Arguments& a) { w.thaw_daemon(a.name(0)); }, 'h'}},
      {"freeze-host", {[](World& w, const Arguments& a) { w.freeze_host(a.name(0)); }, 'h'}},
      {"thaw-host", {[](World& w, const Arguments& a) { w.thaw_host(a.name(0)); }, 'h'}},
      {"power-off", {[](World& w, const Arguments& a) { w.power_off(a.name(0)); }, 'h'}},
      {"power-on", {[](World& w, const Arguments& a) { w.power_on(a.name(0)); }, 'h'}},
      {"new-disk", {[](World& w, const Arguments& a) { w.lose_disk(a.name(0)); }, 'h'}},
      {"rot", {[](World& w, const Arguments& a) { w.rot_home_file(a.name(0), a.count("bit", 1'000)); }, 'h'}},
      {"clock",
       {[](World& w, const Arguments& a) { w.host(a.name(0)).machine->set_rate(w.kernel().now(), a.number("ppm", 0)); },
        'h'}},
      {"disk", {set_disk, 'h'}},
      {"declare-dead", {[](World& w, const Arguments& a) { w.declare_dead(a.name(0)); }, 'h'}},
      {"kill-relay", {[](World& w, const Arguments& a) { w.kill_relay(a.name(0)); }, 'd'}},
      {"freeze-relay", {[](World& w, const Arguments& a) { w.freeze_relay(a.name(0)); }, 'd'}},
      {"thaw-relay", {[](World& w, const Arguments& a) { w.thaw_relay(a.name(0)); }, 'd'}},
      {"plug", {[](World& w, const Arguments& a) { w.plug(a.name(0)); }, 'd'}},
      {"unplug", {[](World& w, const Arguments& a) { w.unplug(a.name(0)); }, 'd'}},
      {"revoke",
       {[](World& w, const Arguments& a) {
          w.revoke(a.name(0), static_cast<std::uint32_t>(a.count("grace", 0) * 1'000));
        },
        'd'}},
      {"extend", {[](World& w, const Arguments& a) { w.extend(a.name(0), a.count("for", 60)); }, 'd'}},
      {"cut",
       {[](World& w, const Arguments& a) { w.partition(split(a.name(0), ','), a.has("one-way"), a.has("store")); }}},
      {"heal", {[](World& w, const Arguments& /*a*/) { w.heal(); }}},
      {"net", {set_network}},
      {"store", {set_store}},
      {"snapshot", {[](World& w, const Arguments& /*a*/) {
         g_snapshot.image = w.store().image();
         g_snapshot.taken = true;
       }}},
      {"restore", {[](World& w, const Arguments& /*a*/) { restore(w, true); }}},
      {"roll-back", {[](World& w, const Arguments& /*a*/) { restore(w, false); }}},
      {"transfer", {[](World& w, const Arguments& a) { w.transfer(a.name(0)); }, 'h'}},
      {"new-epoch", {[](World& w, const Arguments& /*a*/) { w.new_epoch(); }}},
      {"coordinator", {[](World& w, const Arguments& a) {
         const auto host = w.coordinator();
         if (host) (void)do_step(w, {w.kernel().now(), {a.name(0), *host}});
       }}},
  };
  return all;
}

bool exists(World& world, char kind, const std::string& name) {
  switch (kind) {
    case 'h':
      return world.hosts().contains(name);
    case 'g':
      return world.guests().contains(name);
    case 'd':
      return world.devices().contains(name);
    default:
      return true;
  }
}

}  // namespace

Result<void> do_step(World& world, const Step& step) {
  const auto verb = verbs().find(step.words.at(0));
  if (verb == verbs().end()) return fail(ErrorCode::kBadInput, "there is no command " + step.words[0]);
  const Arguments arguments(step.words);
  if (!exists(world, verb->second.first, arguments.name(0)))
    return fail(ErrorCode::kBadInput, step.words[0] + ": there is no " + arguments.name(0));
  verb->second.act(world, arguments);
  return {};
}

void mend(World& world) {
  world.kernel().trace("world", "everything is mended");
  world.network().faults = {};
  world.store().faults = {};
  if (!world.network().cut.empty() || !world.cut_from_store.empty()) world.heal();
  for (auto& [id, host] : world.hosts()) {
    host.disk_full_permille = 0;
    host.disk_delay_max = 5 * kMs;
    if (host.machine->frozen) world.thaw_host(id);
    if (host.daemon && host.daemon_process->frozen) world.thaw_daemon(id);
    if (!host.powered) world.power_on(id);
    if (!host.daemon) world.start_daemon(id);
  }
  for (auto& [name, device] : world.devices()) {
    world.thaw_relay(name);
    if (!device->plugged()) world.plug(name);
  }
  if (g_snapshot.taken) {
    // Twice: the first may find no coordinator yet.
    for (const Ns delay : {30 * kSecond, 45 * kSecond})
      world.kernel().after(delay, nullptr, [&world] { world.new_epoch(); });
  }
}

namespace {

// To its end, or until everything has been at rest for a while.
void run_to_rest(const Schedule& schedule, World& world) {
  constexpr Ns kLook = 5 * kSecond;
  constexpr int kLooks = 3;  // in a row
  Kernel& kernel = world.kernel();
  const auto step = [&world] { world.checks().step(); };
  kernel.run_until(schedule.rest ? schedule.faults_end : schedule.end, step);
  // A host's silence is noticed after its ttl, and the repair of a store that went back comes later than the rest.
  Ns until = schedule.faults_end + (g_snapshot.taken ? 50 : 15) * kSecond;
  for (int quiet = 0; schedule.rest && quiet < kLooks && until < schedule.end; until += kLook) {
    kernel.run_until(until, step);
    if (!kernel.failure().empty()) return;
    quiet = world.checks().unsettled().empty() ? quiet + 1 : 0;
  }
  if (schedule.rest && until >= schedule.end) kernel.run_until(schedule.end, step);
  if (!schedule.mend || !kernel.failure().empty()) return;
  if (const std::string why = world.checks().unsettled(); !why.empty()) kernel.fail(why);
}

}  // namespace

Outcome run(const Schedule& schedule, std::FILE* trace, std::vector<std::string>* story) {
  Kernel kernel(schedule.seed);
  kernel.set_trace(trace);
  kernel.set_story(story);
  g_snapshot = {};
  Outcome outcome;
  {
    World world(kernel, schedule.world);
    for (const auto& [id, host] : world.hosts())
      kernel.after(kernel.chance().below(kSecond), nullptr, [&world, id = id] { world.start_daemon(id); });
    for (const Step& step : schedule.steps) {
      kernel.at(step.at, nullptr, [&world, &kernel, &step] {
        if (const auto done = do_step(world, step); !done) kernel.fail(done.error().message);
      });
    }
    if (schedule.mend) kernel.at(schedule.faults_end, nullptr, [&world] { mend(world); });
    run_to_rest(schedule, world);
    outcome.failure = kernel.failure();
    outcome.grants = world.checks().grants();
    outcome.elections = world.checks().elections();
  }
  outcome.failed_at = kernel.now();
  outcome.digest = kernel.digest();
  outcome.events = kernel.events();
  outcome.simulated = kernel.now();
  return outcome;
}

// --- Text ------------------------------------------------------------------------------------------

namespace {

std::string format_seconds(Ns ns) {
  char text[40];
  std::snprintf(text, sizeof text, "%llu.%03llu", static_cast<unsigned long long>(ns / kSecond),
                static_cast<unsigned long long>(ns / kMs % 1'000));
  return text;
}

bool parse_seconds(const std::string& text, Ns* out) {
  char* end = nullptr;
  const double seconds = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end != '\0' || seconds < 0 || seconds > 1e6) return false;
  *out = static_cast<Ns>(seconds * 1e3 + 0.5) * kMs;
  return true;
}

bool set(Schedule& schedule, const std::string& name, const std::string& value) {
  std::uint64_t number = 0;
  std::from_chars(value.data(), value.data() + value.size(), number);
  const auto small = static_cast<std::uint32_t>(std::min<std::uint64_t>(number, 1'000'000'000));
  if (name == "seed") {
    schedule.seed = number;
  } else if (name == "hosts") {
    schedule.world.hosts = small;
  } else if (name == "candidates") {
    schedule.world.candidates = small;
  } else if (name == "devices") {
    schedule.world.devices = small;
  } else if (name == "guests") {
    schedule.world.guests_per_host = small;
  } else if (name == "isolation_ms") {
    schedule.world.isolation_ms = small;
  } else if (name == "timing") {
    schedule.world.timing = value == "fast" ? kFast : lease::Timing{};
  } else if (name == "drift_ppm") {
    schedule.world.timing.drift_ppm = small;
  } else if (name == "faults_end") {
    return parse_seconds(value, &schedule.faults_end);
  } else if (name == "end") {
    return parse_seconds(value, &schedule.end);
  } else if (name == "mend") {
    schedule.mend = value == "yes";
  } else if (name == "rest") {
    schedule.rest = value == "yes";
  } else {
    return false;
  }
  return true;
}

}  // namespace

Result<Schedule> parse_schedule(const std::string& text, const std::string& path) {
  Schedule schedule;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::vector<std::string> words = split(line.substr(0, line.find('#')), ' ');
    if (words.empty()) continue;
    const auto bad = [&](const std::string& why) {
      return fail(ErrorCode::kBadInput, path + ":" + std::to_string(number) + ": " + why);
    };
    if (words[0] != "at") {
      if (words.size() != 2 || !set(schedule, words[0], words[1])) return bad("no such setting: " + line);
      continue;
    }
    Step step;
    if (words.size() < 3 || !parse_seconds(words[1], &step.at)) return bad("expected: at SECONDS COMMAND …");
    step.words.assign(words.begin() + 2, words.end());
    if (!verbs().contains(step.words[0])) return bad("there is no command " + step.words[0]);
    schedule.steps.push_back(std::move(step));
  }
  std::stable_sort(schedule.steps.begin(), schedule.steps.end(),
                   [](const Step& a, const Step& b) { return a.at < b.at; });
  return schedule;
}

std::string format_schedule(const Schedule& schedule) {
  std::string out = "seed " + std::to_string(schedule.seed) + "\n";
  const WorldOptions& world = schedule.world;
  out += "hosts " + std::to_string(world.hosts) + "\ncandidates " + std::to_string(world.candidates) + "\ndevices " +
         std::to_string(world.devices) + "\nguests " + std::to_string(world.guests_per_host) + "\nisolation_ms " +
         std::to_string(world.isolation_ms) + "\ntiming " + (world.timing.ttl_ms == kFast.ttl_ms ? "fast" : "default") +
         "\ndrift_ppm " + std::to_string(world.timing.drift_ppm) + "\nfaults_end " +
         format_seconds(schedule.faults_end) + "\nend " + format_seconds(schedule.end) + "\nmend " +
         (schedule.mend ? "yes" : "no") + "\nrest " + (schedule.rest ? "yes" : "no") + "\n";
  for (const Step& step : schedule.steps) {
    out += "at " + format_seconds(step.at);
    for (const std::string& word : step.words) out += " " + word;
    out += "\n";
  }
  return out;
}

// --- From a seed -----------------------------------------------------------------------------------

namespace {

class Drawing {
 public:
  explicit Drawing(std::uint64_t seed) : chance_(seed ^ 0x5ced01e5ULL) { schedule_.seed = seed; }

  Schedule draw() {
    WorldOptions& world = schedule_.world;
    world.hosts = static_cast<std::uint32_t>(chance_.between(1, 5));
    world.candidates = static_cast<std::uint32_t>(chance_.between(1, world.hosts));
    world.devices = static_cast<std::uint32_t>(chance_.between(1, 3));
    world.guests_per_host = static_cast<std::uint32_t>(chance_.between(1, 2));
    if (chance_.permille(500)) world.timing = kFast;
    // Clocks of another planet, so that what drift costs is seen.
    if (chance_.permille(250)) world.timing.drift_ppm = 100'000;
    if (chance_.permille(300)) world.isolation_ms = static_cast<std::uint32_t>(chance_.between(2, 60) * 1'000);
    schedule_.faults_end = chance_.between(30, 90) * kSecond;
    schedule_.end = schedule_.faults_end + 170 * kSecond;
    schedule_.rest = true;
    harshness_ = chance_.below(4);
    add(kSecond, "");
    if (harshness_ != 0) weather();
    morning();
    Ns at = 2 * kSecond;
    while (at < schedule_.faults_end) {
      if (chance_.permille(harshness_ == 0 ? 0 : 300 + 100 * harshness_)) {
        fault(at);
      } else {
        work(at);
      }
      at += chance_.between(50, 2'500) * kMs;
    }
    std::erase_if(schedule_.steps, [](const Step& step) { return step.words.empty(); });
    std::stable_sort(schedule_.steps.begin(), schedule_.steps.end(),
                     [](const Step& a, const Step& b) { return a.at < b.at; });
    return std::move(schedule_);
  }

 private:
  void add(Ns at, const std::string& text) {
    if (at < schedule_.faults_end) schedule_.steps.push_back({at, split(text, ' ')});
  }
  std::string host() { return "h" + std::to_string(chance_.between(1, schedule_.world.hosts)); }
  std::string device() { return "d" + std::to_string(chance_.between(1, schedule_.world.devices)); }
  // Mostly one at the home of some device, since only those reach it.
  std::string guest() {
    const std::uint64_t at = chance_.permille(850)
                                 ? chance_.below(std::min(schedule_.world.devices, schedule_.world.hosts)) + 1
                                 : chance_.between(1, schedule_.world.hosts);
    return "g" + std::to_string(at) +
           std::string(1, static_cast<char>('a' + chance_.below(schedule_.world.guests_per_host)));
  }
  // Of the guest's own host, when it has one.
  std::string device_for(const std::string& guest) {
    const std::string home = guest.substr(1, guest.size() - 2);
    return chance_.permille(850) && std::stoul(home) <= schedule_.world.devices ? "d" + home : device();
  }
  std::string number(std::uint64_t least, std::uint64_t most) { return std::to_string(chance_.between(least, most)); }

  // What the network, the store and the disks are like in this run.
  void weather() {
    if (chance_.permille(500))
      add(kSecond, "net lost=" + number(0, 30 * harshness_) + " reset=" + number(0, 4) + " slow=" + number(0, 50) +
                       " delay=" + number(1, 200));
    if (chance_.permille(500))
      add(kSecond, "store lost=" + number(0, 5 * harshness_) + " unheard=" + number(0, 5 * harshness_) +
                       " late=" + number(0, harshness_) + " full=" + number(0, 20) + " early-death=" + number(0, 5) +
                       " watch-break=" + number(0, 20) + " latency=" + number(1, 300));
    if (chance_.permille(300))
      add(kSecond, "disk " + host() + " full=" + number(0, 300) + " delay=" + number(1, 1'500));
  }

  // Most guests run from the beginning: only of those that run does anything come.
  void morning() {
    for (std::uint32_t h = 1; h <= schedule_.world.hosts; ++h) {
      for (std::uint32_t g = 0; g < schedule_.world.guests_per_host; ++g) {
        const std::string who = "g" + std::to_string(h) + static_cast<char>('a' + g);
        const Ns at = kSecond + chance_.below(kSecond / kMs) * kMs;
        if (chance_.permille(700)) add(at, "start " + who + (chance_.permille(300) ? " " + device_for(who) : ""));
      }
    }
  }

  void work(Ns at) {
    const std::string who = guest();
    switch (chance_.below(10)) {
      case 0:
      case 1:
      case 2:
        return add(at, "start " + who + (chance_.permille(500) ? " " + device_for(who) : "") +
                           (chance_.permille(200) ? " optional" : ""));
      case 3:
      case 4:
      case 5:
        return add(at, "attach " + who + " " + device_for(who) + (chance_.permille(150) ? " " + device() : "") +
                           " wait=" + number(0, 40) + (chance_.permille(300) ? " for=" + number(1, 30) : "") +
                           (chance_.permille(100) ? " priority=" + number(1, 3) : ""));
      case 6:
        return add(at, "detach " + who + " " + device_for(who));
      case 7:
        return add(at, (chance_.permille(500) ? "stop " : "crash ") + who);
      case 8:
        return add(at, "revoke " + device() + " grace=" + number(0, 4));
      default:
        return add(at, "extend " + device() + " for=" + number(1, 60));
    }
  }

  // A fault, and most often its end some time later.
  void fault(Ns at) {
    const Ns later = at + chance_.between(100, 25'000) * kMs;
    const std::string who = host();
    const std::string what = device();
    switch (chance_.below(16)) {
      case 0:
        add(at, "kill-daemon " + who);
        return add(later, "start-daemon " + who);
      case 1:
        add(at, "freeze-daemon " + who);
        return add(later, "thaw-daemon " + who);
      case 2:
        add(at, "freeze-host " + who);
        return add(later, "thaw-host " + who);
      case 3:
        add(at, "power-off " + who);
        if (chance_.permille(200)) add(at + kSecond, "declare-dead " + who);
        if (chance_.permille(100)) add(at + kSecond, "new-disk " + who);
        return add(later, "power-on " + who);
      case 4:
      case 5: {
        std::string side = who;
        if (chance_.permille(400)) side += "," + host();
        add(at, "cut " + side + (chance_.permille(250) ? " one-way" : "") + (chance_.permille(500) ? " store" : ""));
        return add(later, "heal");
      }
      case 6:
        return add(at, "kill-relay " + what);
      case 7:
        add(at, "freeze-relay " + what);
        return add(later, "thaw-relay " + what);
      case 8:
        add(at, "unplug " + what);
        return add(chance_.permille(500) ? at + chance_.below(300) * kMs : later, "plug " + what);
      case 9:
        add(at, "kill-daemon " + who);
        if (chance_.permille(300)) add(at, "rot " + who + " bit=" + number(0, 5'000));
        return add(at + chance_.between(1, 500) * kMs, "start-daemon " + who);
      case 10:
        return add(at,
                   "clock " + who + " ppm=" +
                       std::to_string(static_cast<std::int64_t>(chance_.below(schedule_.world.timing.drift_ppm + 1)) -
                                      schedule_.world.timing.drift_ppm / 2));
      case 11:
        if (!chance_.permille(150)) return;
        add(at, "snapshot");
        return add(later, chance_.permille(500) ? "restore" : "roll-back");
      case 12:
        add(at, "coordinator kill-daemon");
        for (std::uint32_t i = 1; i <= schedule_.world.hosts; ++i) add(later, "start-daemon h" + std::to_string(i));
        return;
      case 13:
        add(at, "coordinator freeze-daemon");
        for (std::uint32_t i = 1; i <= schedule_.world.hosts; ++i) add(later, "thaw-daemon h" + std::to_string(i));
        return;
      case 14:
        return add(at, "transfer " + who);
      default:
        add(at, "crash " + guest());
    }
  }

  Chance chance_;
  Schedule schedule_;
  std::uint64_t harshness_ = 0;
};

}  // namespace

Schedule draw_schedule(std::uint64_t seed) { return Drawing(seed).draw(); }

}  // namespace usblease::sim
