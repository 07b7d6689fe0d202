// Whether the QEMU at the other end of a stream enforces its leases by itself: asked before a device whose policy wants
// that (min_rung=qemu) is armed for it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "common/error.h"
#include "common/main_loop.h"
#include "daemon/host/qemu_module.h"

namespace usblease::host {

class QemuWitness {
 public:
  // Calls `done` once, from the main loop, never when destroyed before. QEMU connects before it loads the module, but
  // it is the module that speaks first on `stream`, which stays the caller's: so the first byte, or the end, is waited
  // for, and then the process is looked at. That may take as long as the guest stays paused. kRefused: another module,
  // or none, is loaded; kNotFound: the process has ended.
  QemuWitness(int stream, pid_t pid, std::string module_state, std::function<void(Result<void>)> done);

 private:
  [[nodiscard]] Result<void> look() const;
  void end(const Result<void>& result);

  pid_t pid_;
  std::string module_state_;
  std::function<void(Result<void>)> done_;
  SourceHandle readable_;
};

}  // namespace usblease::host
