// usblease-bench grant: what a lease costs on one host, beside what the disk and the socket alone cost in the same run.
#pragma once

#include <string>

#include "common/error.h"

namespace usblease::bench {

struct GrantOptions {
  std::string directory = ".";  // which disk
  int rounds = 1000;
  int hook_rounds = 200;
  bool json = false;
};

// Prints the report on stdout.
Result<void> run_grant(const GrantOptions& options);

}  // namespace usblease::bench
