// usblease-sim: runs seeds, replays one as a story, runs scenarios.
#include <glib.h>
#include <google/protobuf/stubs/logging.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "common/glib_ptr.h"
#include "tests/sim/mutants.h"
#include "tests/sim/schedule.h"

namespace usblease::sim {
namespace {

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

struct Arguments {
  gint64 seed = -1;
  gint64 seeds = 0;
  gint64 from = 1;
  bool trace = false;
  bool json = false;
  bool mutants = false;
  bool mutant_names = false;
  bool shrink = false;
  bool print_schedule = false;
  std::string scenario;
  std::string mutant;
};

bool parse(int argc, char** argv, Arguments* out) {
  char* scenario = nullptr;
  char* planted = nullptr;
  gboolean trace = FALSE;
  gboolean json = FALSE;
  gboolean all_mutants = FALSE;
  gboolean names = FALSE;
  gboolean cut_down = FALSE;
  gboolean print = FALSE;
  const GOptionEntry entries[] = {
      {"seed", 0, 0, G_OPTION_ARG_INT64, &out->seed, "Run this one", "S"},
      {"seeds", 0, 0, G_OPTION_ARG_INT64, &out->seeds, "Run so many", "N"},
      {"from", 0, 0, G_OPTION_ARG_INT64, &out->from, "The first of them", "S"},
      {"trace", 0, 0, G_OPTION_ARG_NONE, &trace, "A line an event on stdout", nullptr},
      {"json", 0, 0, G_OPTION_ARG_NONE, &json, "Figures as JSON", nullptr},
      {"mutants", 0, 0, G_OPTION_ARG_NONE, &all_mutants, "Plant each known fault; which seed finds it", nullptr},
      {"mutant-names", 0, 0, G_OPTION_ARG_NONE, &names, "The names of the known faults", nullptr},
      {"mutant", 0, 0, G_OPTION_ARG_STRING, &planted, "Plant this one for the run", "NAME"},
      {"shrink", 0, 0, G_OPTION_ARG_NONE, &cut_down, "With --seed: print the least schedule that still fails", nullptr},
      {"schedule", 0, 0, G_OPTION_ARG_NONE, &print, "With --seed: print its schedule and do not run it", nullptr},
      {"scenario", 0, 0, G_OPTION_ARG_FILENAME, &scenario, "Run the commands of this file", "FILE"},
      {nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr}};
  const GPtr<GOptionContext, g_option_context_free> context(g_option_context_new("- simulate whole clusters"));
  g_option_context_add_main_entries(context.get(), entries, nullptr);
  GErrorOut error;
  const bool parsed = g_option_context_parse(context.get(), &argc, &argv, error.out()) != FALSE;
  const GChars scenario_owner(scenario);
  const GChars planted_owner(planted);
  if (!parsed || argc > 1) {
    std::cerr << "usblease-sim: " << (parsed ? std::string("unexpected argument ") + argv[1] : error.message()) << '\n';
    return false;
  }
  if (scenario != nullptr) out->scenario = scenario;
  if (planted != nullptr) out->mutant = planted;
  out->trace = trace != FALSE;
  out->json = json != FALSE;
  out->mutants = all_mutants != FALSE;
  out->mutant_names = names != FALSE;
  out->shrink = cut_down != FALSE;
  out->print_schedule = print != FALSE;
  return true;
}

int report(const Schedule& schedule, const Outcome& outcome) {
  if (outcome.failure.empty()) {
    std::printf("seed %llu: holds; %llu events, %llu grants, %llu elections, digest %016llx\n",
                static_cast<unsigned long long>(schedule.seed), static_cast<unsigned long long>(outcome.events),
                static_cast<unsigned long long>(outcome.grants), static_cast<unsigned long long>(outcome.elections),
                static_cast<unsigned long long>(outcome.digest));
    return 0;
  }
  std::printf("seed %llu: VIOLATED at %.3f s: %s\n", static_cast<unsigned long long>(schedule.seed),
              static_cast<double>(outcome.failed_at) / 1e9, outcome.failure.c_str());
  return 1;
}

int run_one(const Arguments& arguments) {
  Schedule schedule = draw_schedule(static_cast<std::uint64_t>(arguments.seed));
  if (arguments.print_schedule) {
    std::cout << format_schedule(schedule);
    return 0;
  }
  if (arguments.shrink) schedule = shrink(schedule);
  if (arguments.shrink) std::cout << format_schedule(schedule);
  const Outcome outcome = run(schedule, arguments.trace ? stdout : nullptr);
  return report(schedule, outcome);
}

int run_many(const Arguments& arguments) {
  const double began = cpu_seconds();
  std::uint64_t failed = 0;
  std::uint64_t events = 0;
  std::uint64_t grants = 0;
  std::uint64_t elections = 0;
  double simulated_s = 0;
  for (gint64 i = 0; i < arguments.seeds; ++i) {
    const Schedule schedule = draw_schedule(static_cast<std::uint64_t>(arguments.from + i));
    const Outcome outcome = run(schedule, nullptr);
    events += outcome.events;
    grants += outcome.grants;
    elections += outcome.elections;
    simulated_s += static_cast<double>(outcome.simulated) / 1e9;
    if (outcome.failure.empty()) continue;
    ++failed;
    if (!arguments.json) report(schedule, outcome);
    if (arguments.json)
      std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(schedule.seed), outcome.failure.c_str());
  }
  const double cpu_s = cpu_seconds() - began;
  std::printf(
      "{\"seeds\": %lld, \"from\": %lld, \"violated\": %llu, \"cpu_s\": %.1f, \"seeds_per_s\": %.1f, "
      "\"simulated_s_per_cpu_s\": %.0f, \"events_per_s\": %.0f, \"grants\": %llu, \"elections\": %llu}\n",
      static_cast<long long>(arguments.seeds), static_cast<long long>(arguments.from),
      static_cast<unsigned long long>(failed), cpu_s, static_cast<double>(arguments.seeds) / cpu_s, simulated_s / cpu_s,
      static_cast<double>(events) / cpu_s, static_cast<unsigned long long>(grants),
      static_cast<unsigned long long>(elections));
  return failed == 0 ? 0 : 1;
}

int run_scenario(const Arguments& arguments) {
  std::ifstream in(arguments.scenario);
  std::stringstream text;
  text << in.rdbuf();
  const auto schedule = parse_schedule(text.str(), arguments.scenario);
  if (!in || !schedule) {
    std::cerr << "usblease-sim: " << (schedule ? "cannot read " + arguments.scenario : schedule.error().message)
              << '\n';
    return 2;
  }
  return report(*schedule, run(*schedule, arguments.trace ? stdout : nullptr));
}

}  // namespace
}  // namespace usblease::sim

int main(int argc, char** argv) {
  using namespace usblease::sim;
  google::protobuf::SetLogHandler(nullptr);
  Arguments arguments;
  if (!parse(argc, argv, &arguments)) return 2;
  if (!arguments.mutant.empty() && !plant(arguments.mutant)) {
    std::cerr << "usblease-sim: there is no mutant " << arguments.mutant << "; --mutants names them\n";
    return 2;
  }
  if (arguments.mutant_names) {
    print_mutant_names();
    return 0;
  }
  constexpr std::uint64_t kMutantSeeds = 400;
  const std::uint64_t seeds = arguments.seeds == 0 ? kMutantSeeds : static_cast<std::uint64_t>(arguments.seeds);
  if (arguments.mutants) return run_mutants(seeds, arguments.mutant);
  if (!arguments.scenario.empty()) return run_scenario(arguments);
  if (arguments.seed >= 0) return run_one(arguments);
  return run_many(arguments);
}
