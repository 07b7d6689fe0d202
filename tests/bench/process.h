// Programs that a benchmark starts.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/error.h"

namespace usblease::bench {

// Starts arguments[0], a path, with `environment` before this process's own. `stdin_fd`: -1 keeps ours. Output and
// errors are appended to the file `output`. -1: it cannot be started.
pid_t spawn(const std::vector<std::string>& arguments, const std::vector<std::string>& environment, int stdin_fd,
            const std::string& output);

// Waits for its end. The exit status, or -1 when a signal ended it.
int wait_for(pid_t pid);

// Runs a program with `stdin_text` (at most 64 KiB) to its end. The exit status, or -1.
int run_program(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                const std::string& stdin_text);

// Runs a program to its end. An error when it fails, with what it wrote on stderr.
Result<void> run_checked(const std::vector<std::string>& arguments);

// What to do when SIGINT or SIGTERM ends the benchmark: on another thread, while the rest goes on, and then this
// process ends with 130. One at a time; to be called before there are other threads.
void on_interrupt(std::function<void()> clean);

// What a process has used so far: user and system time, and its memory now.
struct Usage {
  double cpu_s = 0;
  std::uint64_t resident_bytes = 0;
};
Usage usage_of(pid_t pid);  // zeros when there is none

}  // namespace usblease::bench
