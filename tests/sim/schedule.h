// What is done to a cluster and when: drawn from a seed, or written by hand as a scenario. Both are the same text, so a
// failing seed can be kept, cut down and read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "tests/sim/world.h"

namespace usblease::sim {

struct Step {
  Ns at = 0;
  std::vector<std::string> words;  // the command and what it is about: tests/sim/README.md
};

struct Schedule {
  std::uint64_t seed = 1;
  WorldOptions world;
  Ns faults_end = 60 * kSecond;  // then everything is mended
  Ns end = 240 * kSecond;        // and by then everything has come to rest
  bool mend = true;
  bool rest = false;        // the run ends before `end` once everything has come to rest
  std::vector<Step> steps;  // by time
};

// Everything that a seed decides before the run.
Schedule draw_schedule(std::uint64_t seed);

// One line a setting or step; `path` stands in messages only. kBadInput: the line and what is wrong with it.
Result<Schedule> parse_schedule(const std::string& text, const std::string& path);
std::string format_schedule(const Schedule& schedule);

// One step of it, now. kBadInput: it names what is not there.
Result<void> do_step(World& world, const Step& step);

// Everything works again: machines, daemons, network, disks, devices.
void mend(World& world);

struct Outcome {
  std::string failure;  // empty: nothing that must not be
  Ns failed_at = 0;
  std::uint64_t digest = 0;
  std::uint64_t events = 0;
  std::uint64_t grants = 0;
  std::uint64_t elections = 0;
  Ns simulated = 0;
};

// `trace`: nullptr, or where the story goes.
Outcome run(const Schedule& schedule, std::FILE* trace, std::vector<std::string>* story = nullptr);

}  // namespace usblease::sim
