// usblease-bench cluster: three hosts, beside the same three etcd used the way people use them for locks.
#pragma once

#include <string>

#include "common/error.h"

namespace usblease::bench {

struct ClusterOptions {
  std::string directory = ".";  // which disk
  int rounds = 300;             // of one client
  int clients = 64;
  int seconds = 10;  // of many clients, for each side
  int kills = 20;
  bool json = false;
};

// Prints the report on stdout, progress on stderr.
Result<void> run_cluster(const ClusterOptions& options);

}  // namespace usblease::bench
