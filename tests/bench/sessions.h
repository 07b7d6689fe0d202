// usblease-bench sessions: what one coordinator costs with many hosts and leases that only renew.
#pragma once

#include <string>

#include "common/error.h"

namespace usblease::bench {

struct SessionsOptions {
  std::string directory = ".";
  int hosts = 1000;  // at most 1000
  int leases = 100;  // of each host; hosts × leases is at most 100,000
  int seconds = 30;  // that are measured
  bool json = false;
};

// Prints the report on stdout, progress on stderr.
Result<void> run_sessions(const SessionsOptions& options);

}  // namespace usblease::bench
