// The libvirt hook of usblease: /etc/libvirt/hooks/qemu.d/50-usblease. libvirt runs it as
//   50-usblease GUEST OPERATION SUBOPERATION EXTRA   with the domain XML on stdin
// and waits for it. It never calls libvirt, which would deadlock. This file uses the C library alone; what a guest that
// declares a device needs besides is in a module, loaded then (hook.h).
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "plugin/libvirt/gate.h"
#include "plugin/libvirt/hook.h"
#include "plugin/libvirt/input.h"

namespace {

using usblease::hook::Gate;
using usblease::hook::InputOutcome;

constexpr std::uint64_t kInputDeadlineNs = 10'000'000'000;
constexpr const char* kConfigPath = "/etc/usblease/usbleased.conf";  // kDefaultConfigPath of common/config.h

std::uint64_t boottime_ns() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// After a failure that is not the daemon's refusal: only where the guest has not started may it be stopped.
int fails(Gate gate, const char* why, const char* detail) {
  if (gate != Gate::kStart) return 0;
  std::fprintf(stderr, "usblease: this guest is not started: %s%s\n", why, detail);
  return 1;
}

// A module that dies, of memory that ran out say, must not take a running guest with it.
void silence_crashes() {
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) std::signal(number, [](int) { _exit(0); });
}

int run_module(Gate gate, const UsbleaseHookRun& run) {
  // By name: the program's run path says where (plugin/libvirt/meson.build).
  void* const module = dlopen("usblease-hook.so", RTLD_LAZY | RTLD_LOCAL);
  void* const entry = module != nullptr ? dlsym(module, "usblease_hook_run") : nullptr;
  if (entry == nullptr) {
    const char* const error = dlerror();
    return fails(gate, "the hook's module cannot be loaded; reinstall usblease: ", error != nullptr ? error : "");
  }
  return reinterpret_cast<decltype(&usblease_hook_run)>(entry)(&run);
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t invoked_ns = boottime_ns();
  if (argc < 3) return 0;  // not libvirt
  const Gate gate = usblease::hook::gate_of(argv[2]);
  if (gate == Gate::kNone) return 0;
  std::signal(SIGPIPE, SIG_IGN);
  if (gate != Gate::kStart) silence_crashes();

  usblease::hook::Input input;
  const InputOutcome outcome = input.read_all(STDIN_FILENO, invoked_ns + kInputDeadlineNs);
  if (outcome == InputOutcome::kLate) return fails(gate, "libvirt did not send all of the domain XML within 10 s", "");
  if (outcome == InputOutcome::kBroken) return fails(gate, "the domain XML cannot be read from stdin", "");
  if (!input.may_declare()) return 0;
  if (outcome == InputOutcome::kTooLarge) {
    return fails(gate, "its domain XML is larger than 16 MiB and may declare USB devices; make it smaller", "");
  }
  // libvirt gives its hooks a few variables of its own and not this one: it is for tests and for a wrapper script.
  const char* const chosen = secure_getenv("USBLEASE_CONFIG");
  const char* const config_path = chosen != nullptr && *chosen != '\0' ? chosen : kConfigPath;
  return run_module(gate, {argv[1], argv[2], invoked_ns, input.text(), input.size(), config_path});
}
