#include "tests/bench/latency.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace usblease::bench {
namespace {

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

bool Latencies::time(const std::function<bool()>& operation) {
  const std::uint64_t begin_ns = now_ns();
  if (!operation()) return false;
  ns_.push_back(now_ns() - begin_ns);
  return true;
}

double Latencies::quantile_us(double q) const {
  if (ns_.empty()) return 0;
  std::vector<std::uint64_t> sorted = ns_;
  const auto rank = static_cast<std::size_t>(std::llround(q * static_cast<double>(sorted.size() - 1)));
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(rank), sorted.end());
  return static_cast<double>(sorted[rank]) / 1e3;
}

std::string Latencies::json() const {
  std::array<char, 128> out{};
  std::snprintf(out.data(), out.size(), R"({"count": %zu, "p50_us": %.1f, "p99_us": %.1f})", count(), quantile_us(0.5),
                quantile_us(0.99));
  return out.data();
}

}  // namespace usblease::bench
