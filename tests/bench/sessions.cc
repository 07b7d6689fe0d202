#include "tests/bench/sessions.h"

#include <glib.h>
#include <sys/resource.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "common/boottime.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "tests/bench/fake_host.h"
#include "tests/bench/private_cluster.h"

namespace usblease::bench {
namespace {

constexpr std::size_t kStartingMax = 16;     // hosts at once
constexpr std::uint32_t kRenewalMs = 2'000;  // the default
constexpr std::uint64_t kNsPerS = 1'000'000'000;
constexpr std::uint64_t kSetUpMaxNs = 600 * kNsPerS;

using Hosts = std::vector<std::unique_ptr<FakeHost>>;

// Runs the main loop until `done`, or until the time is over: false.
bool run_until(const std::function<bool()>& done, std::uint64_t within_ns) {
  const std::uint64_t give_up_ns = boottime_now_ns() + within_ns;
  const SourceHandle tick = run_after(within_ns, [] {});  // so that the loop comes round
  while (!done()) {
    if (boottime_now_ns() >= give_up_ns) return false;
    g_main_context_iteration(nullptr, TRUE);
  }
  return true;
}

class SetUp {
 public:
  SetUp(PrivateCluster& cluster, Hosts& hosts) : cluster_(cluster), hosts_(hosts) {}

  Result<void> run() {
    fill();
    const bool done = run_until([this] { return !trouble_ || started_ == hosts_.size(); }, kSetUpMaxNs);
    if (!done)
      return fail(ErrorCode::kTimedOut, "only " + std::to_string(started_) + " hosts had their leases in time");
    return trouble_;
  }

 private:
  void fill() {
    while (next_ < hosts_.size() && next_ - started_ < kStartingMax && trouble_) start(next_++);
  }

  void start(std::size_t number) {
    const auto token = cluster_.invite("s" + std::to_string(number));
    if (!token) {
      trouble_ = tl::unexpected(token.error());
      return;
    }
    hosts_[number]->start(*token, {cluster_.name(0), {cluster_.peer_address(0)}}, [this](const Result<void>& done) {
      if (!done) trouble_ = done;
      ++started_;
      // From the main loop: the host is in the middle of its own work.
      post([this, alive = std::weak_ptr(alive_)] {
        if (!alive.expired()) fill();
      });
    });
  }

  PrivateCluster& cluster_;
  Hosts& hosts_;
  Result<void> trouble_;
  std::size_t next_ = 0;
  std::size_t started_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// Both ends of every connection are on this machine, and each fake host listens.
Result<void> allow_descriptors(int hosts) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const auto needed = static_cast<rlim_t>(hosts) * 8 + 512;
  if (limit.rlim_cur >= needed) return {};
  return fail(ErrorCode::kUnavailable, "so many hosts need " + std::to_string(needed) +
                                           " open files, and the limit here is " + std::to_string(limit.rlim_cur) +
                                           "; raise it (ulimit -n), or take fewer --hosts");
}

struct Report {
  FakeHostStats stats;
  Usage daemon, etcd;  // CPU: of the time that was measured
  double wall_s = 0;
};

void print(const Report& r, const SessionsOptions& options) {
  const double per_s = static_cast<double>(r.stats.answers.count()) / r.wall_s;
  const double share = 100 * r.daemon.cpu_s / r.wall_s;
  const double etcd_share = 100 * r.etcd.cpu_s / r.wall_s;
  const double mb = static_cast<double>(r.daemon.resident_bytes) / 1e6;
  const double p50_ms = r.stats.answers.quantile_us(0.5) / 1e3;
  const double p99_ms = r.stats.answers.quantile_us(0.99) / 1e3;
  if (options.json) {
    std::printf(
        "{\"hosts\": %d, \"leases_per_host\": %d, \"seconds\": %.1f, \"renewals_per_s\": %.1f,\n"
        " \"coordinator_cpu_percent\": %.1f, \"coordinator_resident_mb\": %.1f, \"etcd_cpu_percent\": %.1f,\n"
        " \"answer_p50_ms\": %.2f, \"answer_p99_ms\": %.2f, \"refused\": %llu, \"short_answers\": %llu}\n",
        options.hosts, options.leases, r.wall_s, per_s, share, mb, etcd_share, p50_ms, p99_ms,
        static_cast<unsigned long long>(r.stats.refused), static_cast<unsigned long long>(r.stats.short_answers));
    return;
  }
  std::printf("%d hosts with %d leases each, for %.0f s\n", options.hosts, options.leases, r.wall_s);
  std::printf("%-48s %9.1f\n", "renewals answered per second", per_s);
  std::printf("%-48s %9.1f %%\n", "the coordinator's share of one core", share);
  std::printf("%-48s %9.1f MB\n", "the coordinator's memory", mb);
  std::printf("%-48s %9.1f %%\n", "its etcd's share of one core", etcd_share);
  std::printf("%-48s %9.2f ms\n%-48s %9.2f ms\n", "answer to a renewal, p50", p50_ms, "p99", p99_ms);
  std::printf("%-48s %9llu\n", "renewals refused, or not for every lease",
              static_cast<unsigned long long>(r.stats.refused + r.stats.short_answers));
}

Result<void> measure(PrivateCluster& cluster, const SessionsOptions& options, Report& report) {
  Hosts hosts;
  for (int number = 0; number < options.hosts; ++number)
    hosts.push_back(std::make_unique<FakeHost>("s" + std::to_string(number), options.leases, kRenewalMs, report.stats));
  std::fprintf(stderr, "usblease-bench: %d hosts join and take their leases\n", options.hosts);
  if (auto ready = SetUp(cluster, hosts).run(); !ready) return ready;
  std::fprintf(stderr, "usblease-bench: measuring for %d s\n", options.seconds);
  run_until([] { return false; }, 3 * kRenewalMs * kNsPerS / 1'000);  // until what came before is over
  report.stats = {};
  const Usage daemon_before = cluster.daemons_usage();
  const Usage etcd_before = cluster.etcd_usage();
  const std::uint64_t begun_ns = boottime_now_ns();
  run_until([] { return false; }, static_cast<std::uint64_t>(options.seconds) * kNsPerS);
  report.wall_s = static_cast<double>(boottime_now_ns() - begun_ns) / static_cast<double>(kNsPerS);
  report.daemon = cluster.daemons_usage();
  report.daemon.cpu_s -= daemon_before.cpu_s;
  report.etcd = cluster.etcd_usage();
  report.etcd.cpu_s -= etcd_before.cpu_s;
  return {};
}

}  // namespace

Result<void> run_sessions(const SessionsOptions& options) {
  if (auto allowed = allow_descriptors(options.hosts); !allowed) return allowed;
  log::set_level(log::Level::kWarning);
  auto cluster = PrivateCluster::start(options.directory, /*hosts=*/1, /*devices_per_host=*/1);
  if (!cluster) return tl::unexpected(cluster.error());
  if (auto founded = (*cluster)->found(); !founded) return founded;
  Report report;
  if (auto measured = measure(**cluster, options, report); !measured) return measured;
  print(report, options);
  return {};
}

}  // namespace usblease::bench
