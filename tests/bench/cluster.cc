#include "tests/bench/cluster.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <mutex>
#include <thread>

#include "common/boottime.h"
#include "tests/bench/latency.h"
#include "tests/bench/private_cluster.h"
#include "tests/bench/tls_echo.h"
#include "tests/bench/unix_echo.h"

namespace usblease::bench {
namespace {

using cluster_test::DaemonClient;

constexpr std::uint32_t kAskMs = 30'000;
constexpr std::uint64_t kNsPerS = 1'000'000'000;
constexpr int kHosts = PrivateCluster::kHostsMax;
constexpr int kSlices = 5;              // of many clients: ours and etcd's take turns
constexpr std::int64_t kShortTtlS = 1;  // etcd makes the shortest of it that it allows

// A client with one lease at a time.
class Holder {
 public:
  Holder(const PrivateCluster& cluster, int host, int number)
      : client_(cluster.connect(host)),
        nonce_(std::string(15, '0') + "1"),
        name_("bench-" + std::to_string(host) + "-" + std::to_string(number)) {
    std::array<char, 40> uuid{};
    std::snprintf(uuid.data(), uuid.size(), "6f9619ff-8b86-4d01-b42d-%06d%06d", host, number);
    uuid_ = uuid.data();
  }

  // Until it is granted; asks again while there is no coordinator.
  Result<void> acquire(const std::string& device, std::uint32_t wait_ms = 0) {
    api::ClientFrame frame;
    api::AcquireLease& acquire = *frame.mutable_acquire_lease();
    acquire.set_request_id(name_ + "-" + std::to_string(++requests_));
    acquire.set_guest_uuid(uuid_);
    acquire.set_guest_name(name_);
    acquire.set_nonce(nonce_);
    acquire.add_devices(device);
    acquire.set_wait_ms(wait_ms);
    return ask_until_done(frame);
  }

  // fenced: answers when the device is free again.
  Result<void> release(bool fenced) {
    api::ClientFrame frame;
    frame.mutable_release_lease()->set_guest_uuid(uuid_);
    frame.mutable_release_lease()->set_nonce(nonce_);
    frame.mutable_release_lease()->set_wait_fenced(fenced);
    return ask_until_done(frame);
  }

 private:
  Result<void> ask_until_done(const api::ClientFrame& frame) {
    const std::uint64_t give_up_ns = boottime_now_ns() + 60 * kNsPerS;
    for (;;) {
      const auto answer = client_.ask(frame, kAskMs);
      if (answer && answer->status().code() == command::CODE_OK) return {};
      const bool again = !answer || answer->status().code() == command::CODE_UNAVAILABLE;
      if (!again || boottime_now_ns() > give_up_ns)
        return answer ? fail(ErrorCode::kInternal, answer->status().message()) : tl::unexpected(answer.error());
      usleep(1'000);
    }
  }

  DaemonClient client_;
  std::string nonce_;
  std::string name_;
  std::string uuid_;
  int requests_ = 0;
};

// What `operation` returned is kept, so that a failed round says why.
class Timed {
 public:
  bool operator()(Latencies& latencies, const std::function<Result<void>()>& operation) {
    return latencies.time([&] {
      result_ = operation();
      return result_.has_value();
    });
  }
  [[nodiscard]] const Result<void>& result() const { return result_; }

 private:
  Result<void> result_;
};

struct OneClient {
  Latencies acquire, pair, pair_fenced;     // usblease
  Latencies etcd_pair_four, etcd_pair_two;  // etcd
  Latencies transaction, tls, unix_socket;  // what an acquire is made of
};

struct ManyClients {
  double pairs_per_s = 0, etcd_pairs_per_s = 0;
  // For each pair, daemons and etcd together.
  double cpu_us = 0, etcd_cpu_us = 0;
  std::uint64_t daemons_bytes = 0, etcd_bytes = 0;
};

struct Handover {
  Latencies coordinator_killed, guest_killed, etcd_holder_died;
};

void say(const char* what) { std::fprintf(stderr, "usblease-bench: %s\n", what); }

// The client and its device are on a host that does not coordinate, as most are.
Result<void> measure_one(PrivateCluster& cluster, const ClusterOptions& options, OneClient& report) {
  const auto coordinator = cluster.wait_whole();
  if (!coordinator) return tl::unexpected(coordinator.error());
  const int host = (*coordinator + 1) % kHosts;
  const EtcdAccess access = cluster.etcd(host);
  Holder holder(cluster, host, 0);
  EtcdLocks four(access), two(access), plain(access);
  if (auto kept = two.keep_lease(600); !kept) return kept;
  auto tls = TlsEcho::connect(access.ca_file, access.cert_file, access.key_file);
  if (!tls) return tl::unexpected(tls.error());
  UnixEcho echo;
  Timed timed;
  // All of them alternate, so that a noisy minute hits them alike. Devices and locks take turns too: one that was just
  // given back is still being fenced.
  for (int round = 0; round < options.rounds; ++round) {
    const std::string device = cluster.device(host, round % 8);
    const std::string other = cluster.device(host, 8 + round % 8);
    const std::string lock = "bench/" + std::to_string(round % 8);
    const bool done = timed(report.pair,
                            [&] {
                              if (!timed(report.acquire, [&] { return holder.acquire(device); })) return timed.result();
                              return holder.release(false);
                            }) &&
                      timed(report.etcd_pair_four,
                            [&] {
                              const auto acquired = four.acquire_with_lease(lock);
                              return acquired ? four.release_with_lease() : acquired;
                            }) &&
                      timed(report.pair_fenced,
                            [&] {
                              const auto acquired = holder.acquire(other);
                              return acquired ? holder.release(true) : acquired;
                            }) &&
                      timed(report.etcd_pair_two,
                            [&] {
                              const auto acquired = two.acquire(lock + "-kept");
                              return acquired ? two.release() : acquired;
                            }) &&
                      timed(report.transaction, [&] { return plain.guarded_put("bench-put"); }) &&
                      report.tls.time([&] { return tls->round_trip(); }) &&
                      report.unix_socket.time([&] { return echo.round_trip(); });
    if (!done) return timed.result() ? fail(ErrorCode::kInternal, "an echo broke") : timed.result();
  }
  return {};
}

// Pairs that `clients` threads did in `seconds`; `make` gives the work of one thread.
Result<std::uint64_t> run_clients(int clients, double seconds,
                                  const std::function<std::function<Result<void>()>(int client)>& make) {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> pairs{0};
  std::mutex mutex;
  Result<void> trouble;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(clients));
  for (int client = 0; client < clients; ++client) {
    threads.emplace_back([&, pair = make(client)] {
      while (!stop) {
        auto done = pair();
        if (!done) {
          const std::lock_guard lock(mutex);
          trouble = done;
          return;
        }
        ++pairs;
      }
    });
  }
  usleep(static_cast<useconds_t>(seconds * 1e6));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  if (!trouble) return tl::unexpected(trouble.error());
  return pairs.load();
}

struct Slice {
  std::uint64_t pairs = 0;
  double cpu_s = 0;
  double wall_s = 0;
};

Result<void> run_slice(const PrivateCluster& cluster, int clients, double seconds,
                       const std::function<std::function<Result<void>()>(int client)>& make, Slice& slice) {
  const double cpu_before = cluster.daemons_usage().cpu_s + cluster.etcd_usage().cpu_s;
  const std::uint64_t begun_ns = boottime_now_ns();
  const auto pairs = run_clients(clients, seconds, make);
  if (!pairs) return tl::unexpected(pairs.error());
  slice.pairs += *pairs;
  slice.wall_s += static_cast<double>(boottime_now_ns() - begun_ns) / static_cast<double>(kNsPerS);
  slice.cpu_s += cluster.daemons_usage().cpu_s + cluster.etcd_usage().cpu_s - cpu_before;
  return {};
}

// Each client has a device, or a lock, of its own, on the host that it asks.
Result<void> measure_many(PrivateCluster& cluster, const ClusterOptions& options, ManyClients& report) {
  std::vector<std::unique_ptr<Holder>> holders;
  std::vector<std::unique_ptr<EtcdLocks>> locks;
  for (int client = 0; client < options.clients; ++client) {
    const int host = client % kHosts;
    holders.push_back(std::make_unique<Holder>(cluster, host, client));
    locks.push_back(std::make_unique<EtcdLocks>(cluster.etcd(host)));
    if (auto kept = locks.back()->keep_lease(3'600); !kept) return kept;
  }
  const auto ours = [&](int client) -> std::function<Result<void>()> {
    Holder& holder = *holders[static_cast<std::size_t>(client)];
    const std::string device = cluster.device(client % kHosts, client / kHosts);
    return [&holder, device]() -> Result<void> {
      if (auto acquired = holder.acquire(device); !acquired) return acquired;
      return holder.release(true);
    };
  };
  const auto theirs = [&](int client) -> std::function<Result<void>()> {
    EtcdLocks& lock = *locks[static_cast<std::size_t>(client)];
    return [&lock, name = "bench/many-" + std::to_string(client)]() -> Result<void> {
      if (auto acquired = lock.acquire(name); !acquired) return acquired;
      return lock.release();
    };
  };
  Slice our_slice, their_slice;
  const double seconds = static_cast<double>(options.seconds) / kSlices;
  for (int slice = 0; slice < kSlices; ++slice) {
    if (auto ran = run_slice(cluster, options.clients, seconds, ours, our_slice); !ran) return ran;
    if (auto ran = run_slice(cluster, options.clients, seconds, theirs, their_slice); !ran) return ran;
  }
  report.pairs_per_s = static_cast<double>(our_slice.pairs) / our_slice.wall_s;
  report.etcd_pairs_per_s = static_cast<double>(their_slice.pairs) / their_slice.wall_s;
  report.cpu_us = our_slice.cpu_s * 1e6 / static_cast<double>(std::max<std::uint64_t>(our_slice.pairs, 1));
  report.etcd_cpu_us = their_slice.cpu_s * 1e6 / static_cast<double>(std::max<std::uint64_t>(their_slice.pairs, 1));
  report.daemons_bytes = cluster.daemons_usage().resident_bytes;
  report.etcd_bytes = cluster.etcd_usage().resident_bytes;
  return {};
}

Result<void> kill_coordinator(PrivateCluster& cluster, Latencies& latencies) {
  const auto coordinator = cluster.wait_whole();
  if (!coordinator) return tl::unexpected(coordinator.error());
  const int host = (*coordinator + 1) % kHosts;
  Holder holder(cluster, host, 0);
  Timed timed;
  cluster.kill_daemon(*coordinator);
  if (!timed(latencies, [&] { return holder.acquire(cluster.device(host, 0)); })) return timed.result();
  if (auto released = holder.release(true); !released) return released;
  return cluster.start_daemon(*coordinator);
}

Result<void> kill_guest(PrivateCluster& cluster, Latencies& latencies) {
  const auto coordinator = cluster.wait_whole();
  if (!coordinator) return tl::unexpected(coordinator.error());
  const int host = (*coordinator + 1) % kHosts;
  const std::string device = cluster.device(host, 0);
  const pid_t guest = cluster.start_guest(host, device);
  if (auto granted = cluster.wait_granted(host, device); !granted) return granted;
  Holder holder(cluster, host, 1);
  Timed timed;
  kill(guest, SIGKILL);
  if (!timed(latencies, [&] { return holder.acquire(device, 60'000); })) return timed.result();
  return holder.release(true);
}

// The shortest lease that etcd grants, and a holder that dies right after it was renewed, as most of its time is.
Result<void> kill_etcd_holder(PrivateCluster& cluster, int round, Latencies& latencies) {
  const std::string name = "bench/handover-" + std::to_string(round);
  EtcdLocks dying(cluster.etcd(0)), next(cluster.etcd(1));
  if (auto kept = next.keep_lease(600); !kept) return kept;
  if (auto kept = dying.keep_lease(kShortTtlS); !kept) return kept;
  if (auto acquired = dying.acquire(name); !acquired) return acquired;
  Timed timed;
  if (!timed(latencies, [&] { return next.acquire(name); })) return timed.result();
  return next.release();
}

Result<void> measure_handover(PrivateCluster& cluster, const ClusterOptions& options, Handover& report) {
  for (int round = 0; round < options.kills; ++round) {
    if (auto done = kill_coordinator(cluster, report.coordinator_killed); !done) return done;
    if (auto done = kill_etcd_holder(cluster, round, report.etcd_holder_died); !done) return done;
    if (auto done = kill_guest(cluster, report.guest_killed); !done) return done;
  }
  return {};
}

struct Report {
  OneClient one;
  ManyClients many;
  Handover handover;
};

double ratio(double a, double b) { return b > 0 ? a / b : 0; }
double p50(const Latencies& latencies) { return latencies.quantile_us(0.5); }

struct Row {
  const char* key;
  const char* text;
  const Latencies* latencies;
};

std::vector<Row> rows(const Report& r) {
  return {{"acquire", "acquire, one client", &r.one.acquire},
          {"pair", "acquire + release, one client", &r.one.pair},
          {"pair_until_fenced", "acquire + release until the device is free", &r.one.pair_fenced},
          {"etcd_four_calls", "etcd: LeaseGrant + Lock + Unlock + LeaseRevoke", &r.one.etcd_pair_four},
          {"etcd_two_calls", "etcd: Lock + Unlock under a kept lease", &r.one.etcd_pair_two},
          {"etcd_transaction", "one guarded transaction on etcd", &r.one.transaction},
          {"tls_round_trip", "one round trip over TLS on loopback", &r.one.tls},
          {"unix_round_trip", "one round trip on a raw Unix socket", &r.one.unix_socket},
          {"coordinator_killed_to_grant", "coordinator killed until the next grant", &r.handover.coordinator_killed},
          {"guest_killed_to_grant", "guest killed until the next one's grant", &r.handover.guest_killed},
          {"etcd_holder_died_to_lock", "etcd: holder died until the next one's lock", &r.handover.etcd_holder_died}};
}

struct Ratio {
  const char* key;
  const char* text;
  double value;
};

std::vector<Ratio> ratios(const Report& r) {
  const double floor_us = p50(r.one.transaction) + p50(r.one.tls) + p50(r.one.unix_socket);
  return {{"four_calls_over_pair", "four calls of etcd / ours, one client, p50",
           ratio(p50(r.one.etcd_pair_four), p50(r.one.pair))},
          {"two_calls_over_pair", "two calls of etcd / ours, one client, p50",
           ratio(p50(r.one.etcd_pair_two), p50(r.one.pair))},
          {"four_calls_over_pair_p99", "four calls of etcd / ours, one client, p99",
           ratio(r.one.etcd_pair_four.quantile_us(0.99), r.one.pair.quantile_us(0.99))},
          {"pairs_per_s_over_etcd", "ours / etcd, pairs per second, many clients",
           ratio(r.many.pairs_per_s, r.many.etcd_pairs_per_s)},
          {"acquire_over_floor", "acquire / (transaction + TLS + Unix round trip), p50",
           ratio(p50(r.one.acquire), floor_us)},
          {"acquire_p99_over_p50", "acquire, p99 / p50", ratio(r.one.acquire.quantile_us(0.99), p50(r.one.acquire))},
          {"etcd_handover_over_coordinator_killed", "etcd's handover / coordinator killed, p50",
           ratio(p50(r.handover.etcd_holder_died), p50(r.handover.coordinator_killed))},
          {"etcd_handover_over_guest_killed", "etcd's handover / guest killed, p50",
           ratio(p50(r.handover.etcd_holder_died), p50(r.handover.guest_killed))}};
}

void print_json(const Report& r) {
  std::printf("{");
  for (const Row& row : rows(r)) std::printf("\"%s\": %s,\n ", row.key, row.latencies->json().c_str());
  std::printf(
      "\"many_clients\": {\"pairs_per_s\": %.0f, \"etcd_pairs_per_s\": %.0f, \"cpu_us_per_pair\": %.0f, "
      "\"etcd_cpu_us_per_pair\": %.0f, \"usbleased_bytes\": %llu, \"etcd_bytes\": %llu},\n ",
      r.many.pairs_per_s, r.many.etcd_pairs_per_s, r.many.cpu_us, r.many.etcd_cpu_us,
      static_cast<unsigned long long>(r.many.daemons_bytes), static_cast<unsigned long long>(r.many.etcd_bytes));
  std::printf("\"ratios\": {");
  const char* separator = "";
  for (const Ratio& each : ratios(r)) {
    std::printf("%s\"%s\": %.2f", separator, each.key, each.value);
    separator = ", ";
  }
  std::printf("}}\n");
}

void print_table(const Report& r) {
  std::printf("%-56s %9s %9s\n", "microseconds", "p50", "p99");
  for (const Row& row : rows(r))
    std::printf("%-56s %9.0f %9.0f\n", row.text, p50(*row.latencies), row.latencies->quantile_us(0.99));
  std::printf("\n%-56s %9.0f\n%-56s %9.0f\n", "many clients: pairs per second until the device is free",
              r.many.pairs_per_s, "etcd: Lock + Unlock pairs per second", r.many.etcd_pairs_per_s);
  std::printf("%-56s %9.0f\n%-56s %9.0f\n", "microseconds of CPU per pair, three usbleased and etcd", r.many.cpu_us,
              "microseconds of CPU per pair, three etcd", r.many.etcd_cpu_us);
  std::printf("%-56s %9.1f\n%-56s %9.1f\n\n", "MB, three usbleased", static_cast<double>(r.many.daemons_bytes) / 1e6,
              "MB, three etcd", static_cast<double>(r.many.etcd_bytes) / 1e6);
  for (const Ratio& each : ratios(r)) std::printf("%-56s %9.2f\n", each.text, each.value);
}

}  // namespace

Result<void> run_cluster(const ClusterOptions& options) {
  const int devices = std::max(16, (options.clients + kHosts - 1) / kHosts);
  say("starting three hosts");
  auto cluster = PrivateCluster::start(options.directory, kHosts, devices);
  if (!cluster) return tl::unexpected(cluster.error());
  if (auto founded = (*cluster)->found(); !founded) return founded;
  Report report;
  say("one client");
  if (auto done = measure_one(**cluster, options, report.one); !done) return done;
  say("many clients");
  if (auto done = measure_many(**cluster, options, report.many); !done) return done;
  say("handovers");
  if (auto done = measure_handover(**cluster, options, report.handover); !done) return done;
  options.json ? print_json(report) : print_table(report);
  return {};
}

}  // namespace usblease::bench
