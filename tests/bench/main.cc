// usblease-bench: measures, side by side, in one run. See docs/performance.md.
#include <glib.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "common/glib_ptr.h"
#include "tests/bench/cluster.h"
#include "tests/bench/grant.h"
#include "tests/bench/sessions.h"

namespace usblease::bench {
namespace {

constexpr const char* kUsage =
    "usage: usblease-bench grant|cluster|sessions [--json] [--directory DIR]; OPTIONS: --help after it";

struct Common {
  gboolean json = FALSE;
  char* directory = nullptr;
  char* against = nullptr;
};

// Takes the options out of argv. An empty text, or what is wrong with them.
std::string parse(const char* purpose, std::vector<GOptionEntry> entries, Common& common, int argc, char** argv) {
  entries.push_back({"json", 0, 0, G_OPTION_ARG_NONE, &common.json, "One JSON document", nullptr});
  entries.push_back({"directory", 0, 0, G_OPTION_ARG_FILENAME, &common.directory,
                     "Where to keep the state: decides which disk is measured (default .)", "DIR"});
  entries.push_back({nullptr, 0, 0, G_OPTION_ARG_NONE, nullptr, nullptr, nullptr});
  const GPtr<GOptionContext, g_option_context_free> context(g_option_context_new(purpose));
  g_option_context_add_main_entries(context.get(), entries.data(), nullptr);
  GErrorOut error;
  if (g_option_context_parse(context.get(), &argc, &argv, error.out()) == FALSE) return error.message();
  return argc == 2 ? "" : "wrong arguments";
}

std::string directory_of(const Common& common) {
  std::error_code failed;
  const std::string given = common.directory == nullptr ? "." : common.directory;
  return std::filesystem::absolute(given, failed).lexically_normal().string();
}

int ended(const Result<void>& done) {
  if (done) return 0;
  std::fprintf(stderr, "usblease-bench: %s\n", done.error().message.c_str());
  return 1;
}

int bad_usage(const std::string& why) {
  std::fprintf(stderr, "usblease-bench: %s; %s\n", why.c_str(), kUsage);
  return 2;
}

int grant(int argc, char** argv) {
  GrantOptions options;
  Common common;
  const std::string wrong =
      parse("grant - measure what a lease costs on one host",
            {{"rounds", 0, 0, G_OPTION_ARG_INT, &options.rounds, "Leases to take and give back (default 1000)", "N"},
             {"hook-rounds", 0, 0, G_OPTION_ARG_INT, &options.hook_rounds, "Runs of the hook (default 200)", "N"}},
            common, argc, argv);
  const GChars owner(common.directory);
  if (!wrong.empty()) return bad_usage(wrong);
  if (options.rounds < 1 || options.hook_rounds < 1) return bad_usage("a number of rounds is at least 1");
  options.json = common.json != FALSE;
  options.directory = directory_of(common);
  return ended(run_grant(options));
}

int cluster(int argc, char** argv) {
  ClusterOptions options;
  Common common;
  const std::string wrong = parse(
      "cluster - measure what a lease costs on three hosts",
      {{"against", 0, 0, G_OPTION_ARG_STRING, &common.against, "Beside what: etcd, the only one there is", "NAME"},
       {"rounds", 0, 0, G_OPTION_ARG_INT, &options.rounds, "Of one client (default 300)", "N"},
       {"clients", 0, 0, G_OPTION_ARG_INT, &options.clients, "Of the many (default 64, at most 256)", "N"},
       {"seconds", 0, 0, G_OPTION_ARG_INT, &options.seconds, "Of the many, for each side (default 10)", "N"},
       {"kills", 0, 0, G_OPTION_ARG_INT, &options.kills, "Handovers of each kind (default 20)", "N"}},
      common, argc, argv);
  const GChars owner(common.directory);
  const GChars against(common.against);
  if (!wrong.empty()) return bad_usage(wrong);
  if (against != nullptr && std::string(against.get()) != "etcd") return bad_usage("--against knows etcd only");
  if (options.rounds < 1 || options.clients < 1 || options.clients > 256 || options.seconds < 1 || options.kills < 1)
    return bad_usage("a number is out of range");
  options.json = common.json != FALSE;
  options.directory = directory_of(common);
  return ended(run_cluster(options));
}

int sessions(int argc, char** argv) {
  SessionsOptions options;
  Common common;
  const std::string wrong =
      parse("sessions - measure a coordinator with many hosts and leases that only renew",
            {{"hosts", 0, 0, G_OPTION_ARG_INT, &options.hosts, "That have a session (default and at most 1000)", "N"},
             {"leases", 0, 0, G_OPTION_ARG_INT, &options.leases, "Of each host (default 100)", "N"},
             {"seconds", 0, 0, G_OPTION_ARG_INT, &options.seconds, "That are measured (default 30)", "N"}},
            common, argc, argv);
  const GChars owner(common.directory);
  if (!wrong.empty()) return bad_usage(wrong);
  if (options.hosts < 1 || options.hosts > 1000 || options.leases < 1 || options.leases > 100'000 / options.hosts ||
      options.seconds < 1)
    return bad_usage("a number is out of range");
  options.json = common.json != FALSE;
  options.directory = directory_of(common);
  return ended(run_sessions(options));
}

}  // namespace
}  // namespace usblease::bench

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "grant") return usblease::bench::grant(argc, argv);
  if (verb == "cluster") return usblease::bench::cluster(argc, argv);
  if (verb == "sessions") return usblease::bench::sessions(argc, argv);
  return usblease::bench::bad_usage(verb.empty() ? "what shall be measured?" : "there is no benchmark '" + verb + "'");
}
