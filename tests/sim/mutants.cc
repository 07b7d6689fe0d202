#include "tests/sim/mutants.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "common/mutant.h"

namespace usblease {
namespace {

const char* g_planted = nullptr;

struct Mutant {
  const char* name;
  const char* what;
  std::uint64_t seed;  // that was seen to find it: tried first, so that it mostly takes one run. 0: none is known
};

constexpr std::array kMutants{
    Mutant{"no_grace_after_election", "a new coordinator counts hosts as gone whose renewals it cannot know", 16},
    Mutant{"renewal_without_read", "a renewal is answered without the linearizable read", 0},
    Mutant{"renewal_by_an_earlier_read", "a renewal is answered by a read that began before it arrived", 0},
    Mutant{"gone_as_it_was", "a host that renewed while the decision waited is still counted as gone", 0},
    Mutant{"write_without_guard", "a transaction does not say which coordinator it is from", 2},
    Mutant{"unknown_is_done", "an unknown outcome is taken for done", 134},
    Mutant{"unknown_is_not_read_back", "after an unknown outcome the record is not read again", 53},
    Mutant{"late_writes_may_follow", "after an unknown outcome it is read back, but it may still be done later", 7943},
    Mutant{"unknown_is_forgotten", "after an unknown outcome nobody is answered", 0},
    Mutant{"answer_before_commit", "who asks is told before it is on disk", 31},
    Mutant{"term_stays", "an election does not raise the term", 1},
    Mutant{"equal_timeouts_repeat", "whoever was not elected stands again after the same time as all others", 1},
    Mutant{"renew_what_is_gone", "a renewal extends leases that are no more", 0},
    Mutant{"deadline_from_newest_renewal", "an answer extends as if it were to the newest renewal", 1792},
    Mutant{"deadline_from_answer", "a deadline counts from the answer, not from before the question", 0},
    Mutant{"drift_wrong_way", "the clocks' drift shortens where it must lengthen", 619},
    Mutant{"grant_without_fence", "a device passes on before its home has fenced it", 1},
    Mutant{"time_frees", "a home that is silent for long counts as fenced", 42},
    Mutant{"release_by_guest", "a late release of one start ends the lease of another", 0},
    Mutant{"last_come_first_served", "the queue is served from its end", 4},
    Mutant{"token_used_twice", "a grant does not take a new token", 1},
    Mutant{"reboot_ends_endpoint", "a reboot of the home counts as the end of a stream to an endpoint", 38},
    Mutant{"floors_may_come_later", "a new coordinator grants at homes whose floors it has not heard", 0},
    Mutant{"epoch_stays", "a repair after a restore does not begin a new epoch", 0},
    Mutant{"floors_prove_nothing", "a home's floor above the store's counter is ignored", 0},
    Mutant{"equal_token_is_armed", "a token is armed again after its fence was confirmed", 0},
    Mutant{"floor_is_not_raised", "a fence is confirmed without a floor on disk", 25710},
    Mutant{"fence_without_evidence", "a lost relay counts as fenced", 29},
    Mutant{"confirm_before_the_relay", "a fence is confirmed when it was ordered, not when it was seen", 1},
    Mutant{"lost_relay_is_ignored", "nobody looks for the end of a lost relay's stream", 0},
    Mutant{"old_relay_is_trusted", "a relay that comes back after its fence is taken up again", 0},
    Mutant{"arm_before_disk", "a stream begins before its token is in the home file", 443},
    Mutant{"confirm_any_instance", "a confirmation about another instance is taken", 0},
};

}  // namespace

bool mutant_is_planted(const char* name) { return g_planted != nullptr && std::strcmp(g_planted, name) == 0; }

namespace sim {

bool plant(const std::string& name) {
  g_planted = nullptr;
  const auto* const found =
      std::find_if(kMutants.begin(), kMutants.end(), [&](const Mutant& mutant) { return name == mutant.name; });
  if (found != kMutants.end()) g_planted = found->name;
  return name.empty() || found != kMutants.end();
}

void print_mutant_names() {
  for (const Mutant& mutant : kMutants)
    std::printf("%s %llu\n", mutant.name, static_cast<unsigned long long>(mutant.seed));
}

namespace {

// The one that was seen to find it, then all from the first on. 0: none of them.
std::uint64_t seed_that_finds(const Mutant& mutant, std::uint64_t seeds_max, Outcome* outcome) {
  for (std::uint64_t tried = 0; tried <= seeds_max; ++tried) {
    const std::uint64_t seed = tried == 0 ? mutant.seed : tried;
    if (seed == 0) continue;
    *outcome = run(draw_schedule(seed), nullptr);
    if (!outcome->failure.empty()) return seed;
  }
  return 0;
}

}  // namespace

int run_mutants(std::uint64_t seeds_max, const std::string& only) {
  int escaped = 0;
  int tried = 0;
  for (const Mutant& mutant : kMutants) {
    if (!only.empty() && only != mutant.name) continue;
    ++tried;
    plant(mutant.name);
    Outcome outcome;
    const std::uint64_t seed = seed_that_finds(mutant, seeds_max, &outcome);
    plant("");
    // What also fails without the fault has found nothing.
    const std::string without = seed == 0 ? "" : run(draw_schedule(seed), nullptr).failure;
    const bool found = seed != 0 && without.empty();
    if (!found) ++escaped;
    const std::string how = found       ? outcome.failure
                            : seed == 0 ? "ESCAPED " + std::to_string(seeds_max) + " seeds"
                                        : "NOT PROVED: without it that seed ends with: " + without;
    std::printf("%-32s seed %-6llu %s\n", mutant.name, static_cast<unsigned long long>(seed), how.c_str());
    std::fflush(stdout);
  }
  std::printf("%d mutants, %d escaped\n", tried, escaped);
  return escaped == 0 ? 0 : 1;
}

Schedule shrink(const Schedule& schedule) {
  const auto fails = [](const Schedule& candidate) { return !run(candidate, nullptr).failure.empty(); };
  Schedule least = schedule;
  if (!fails(least)) return least;
  for (std::size_t chunk = std::max<std::size_t>(least.steps.size() / 2, 1); chunk > 0; chunk /= 2) {
    for (std::size_t at = 0; at < least.steps.size();) {
      Schedule without = least;
      const auto first = without.steps.begin() + static_cast<std::ptrdiff_t>(at);
      without.steps.erase(first, first + static_cast<std::ptrdiff_t>(std::min(chunk, without.steps.size() - at)));
      if (fails(without)) {
        least = std::move(without);
      } else {
        at += chunk;
      }
    }
  }
  return least;
}

}  // namespace sim
}  // namespace usblease
