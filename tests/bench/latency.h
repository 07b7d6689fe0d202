// Latencies of one operation, and what people read of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace usblease::bench {

class Latencies {
 public:
  // Runs `operation` once and keeps how long it took on CLOCK_MONOTONIC. false: it failed, nothing is kept.
  bool time(const std::function<bool()>& operation);
  void add(std::uint64_t duration_ns) { ns_.push_back(duration_ns); }
  [[nodiscard]] double quantile_us(double q) const;  // 0 <= q <= 1; 0 when empty
  [[nodiscard]] std::size_t count() const { return ns_.size(); }
  // {"count": …, "p50_us": …, "p99_us": …}
  [[nodiscard]] std::string json() const;

 private:
  std::vector<std::uint64_t> ns_;
};

}  // namespace usblease::bench
