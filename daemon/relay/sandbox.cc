#include "daemon/relay/sandbox.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "common/log.h"
#include "common/sanitized.h"

namespace usblease::relay {
namespace {

constexpr bool kSanitized = USBLEASE_SANITIZED == 1;

// Three 16 MiB packets each way (being read, queued, being copied), the libraries, and room.
constexpr rlim_t kAddressSpaceMax = 512UL * 1024 * 1024;
// 0..5, the timer, the journal's socket, the control connection and the one that replaces it.
constexpr rlim_t kDescriptorsMax = 12;
constexpr int kNiceness = -5;

Result<void> lower_limit(__rlimit_resource which, rlim_t limit, const char* name) {
  rlimit present{};
  if (getrlimit(which, &present) != 0) return fail_errno(std::string("getrlimit ") + name, errno);
  if (present.rlim_max != RLIM_INFINITY && present.rlim_max < limit) limit = present.rlim_max;
  const rlimit lowered{limit, limit};
  if (setrlimit(which, &lowered) != 0) return fail_errno(std::string("setrlimit ") + name, errno);
  return {};
}

Result<void> lower_limits() {
  if (auto done = lower_limit(RLIMIT_CORE, 0, "CORE"); !done) return done;
  if (auto done = lower_limit(RLIMIT_NPROC, 0, "NPROC"); !done) return done;
  if (auto done = lower_limit(RLIMIT_NOFILE, kDescriptorsMax, "NOFILE"); !done) return done;
  if (!kSanitized) {
    if (auto done = lower_limit(RLIMIT_AS, kAddressSpaceMax, "AS"); !done) return done;
  }
  // The log may be a file, of any length already.
  struct stat log_file {};
  const bool logs_to_file = fstat(STDERR_FILENO, &log_file) == 0 && S_ISREG(log_file.st_mode);
  if (!logs_to_file) return lower_limit(RLIMIT_FSIZE, 0, "FSIZE");
  return {};
}

// Before the privileges go: afterwards neither is allowed.
void try_to_run_in_time() {
  if (setpriority(PRIO_PROCESS, 0, kNiceness) != 0) {
    log::info("no better priority than other processes", {{"ERROR", strerrordesc_np(errno)}});
  }
  // Not MCL_FUTURE: RLIMIT_MEMLOCK would then bound every later allocation.
  if (!kSanitized && mlockall(MCL_CURRENT | MCL_ONFAULT) != 0) {
    log::info("memory is not locked; under memory pressure the relay may come late",
              {{"ERROR", strerrordesc_np(errno)}});
  }
}

Result<void> drop_capability_bounds() {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) {
    if (prctl(PR_CAPBSET_DROP, capability) != 0 && errno != EPERM) return fail_errno("PR_CAPBSET_DROP", errno);
  }
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) return fail_errno("PR_CAP_AMBIENT", errno);
  return {};
}

Result<void> clear_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const std::array<__user_cap_data_struct, 2> none{};
  if (syscall(SYS_capset, &header, none.data()) != 0) return fail_errno("capset", errno);
  return {};
}

Result<void> change_user(const SandboxOptions& options) {
  if (geteuid() != 0) {
    if (options.uid == geteuid() && options.gid == getegid()) return {};
    return fail(ErrorCode::kRefused, "only root can run a relay as uid " + std::to_string(options.uid));
  }
  if (setgroups(0, nullptr) != 0) return fail_errno("setgroups", errno);
  if (setresgid(options.gid, options.gid, options.gid) != 0) return fail_errno("setresgid", errno);
  if (setresuid(options.uid, options.uid, options.uid) != 0) return fail_errno("setresuid", errno);
  return {};
}

struct Rule {
  int syscall;
  std::array<scmp_arg_cmp, 2> arguments;
  unsigned argument_count;
};

Result<void> filter_syscalls() {
  const std::unique_ptr<void, void (*)(void*)> filter(seccomp_init(SCMP_ACT_KILL_PROCESS), seccomp_release);
  if (!filter) return fail(ErrorCode::kInternal, "seccomp_init failed");
  static constexpr int kPlain[] = {
      // the streams, the control connection, the log
      SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(read), SCMP_SYS(write),
      SCMP_SYS(accept4), SCMP_SYS(shutdown), SCMP_SYS(close),
      // time; restart_syscall is how poll(2) goes on after SIGCONT
      SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(restart_syscall), SCMP_SYS(clock_gettime), SCMP_SYS(timerfd_settime),
      // memory
      SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(futex),
      // the end, also by abort(3)
      SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask), SCMP_SYS(getpid),
      SCMP_SYS(gettid), SCMP_SYS(tgkill)};
  const scmp_arg_cmp not_executable = SCMP_A2_64(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
  const std::array<Rule, 3> rules{{
      {SCMP_SYS(mmap), {not_executable, SCMP_A3_64(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS)}, 2},
      {SCMP_SYS(mprotect), {not_executable, {}}, 1},
      {SCMP_SYS(getsockopt), {SCMP_A1_32(SCMP_CMP_EQ, SOL_SOCKET), SCMP_A2_32(SCMP_CMP_EQ, SO_PEERCRED)}, 2},
  }};
  int result = 0;
  for (const int number : kPlain) {
    if (result == 0) result = seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, number, 0);
  }
  for (const Rule& rule : rules) {
    if (result != 0) break;
    result =
        seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, rule.syscall, rule.argument_count, rule.arguments.data());
  }
  if (result == 0) result = seccomp_load(filter.get());
  if (result != 0) return fail_errno("cannot install the seccomp filter", -result);
  return {};
}

}  // namespace

Result<void> close_descriptors_above(int last_fd) {
  if (close_range(static_cast<unsigned>(last_fd) + 1, ~0U, 0) != 0) return fail_errno("close_range", errno);
  return {};
}

Result<void> enter_sandbox(const SandboxOptions& options) {
  // The first line opens the journal's socket, if that is where the log goes: later none can be opened.
  log::info("entering the sandbox", {{"UID", std::to_string(options.uid)}});
  if (chdir("/") != 0) return fail_errno("chdir /", errno);
  try_to_run_in_time();
  if (auto done = drop_capability_bounds(); !done) return done;
  if (auto done = change_user(options); !done) return done;
  if (auto done = clear_capabilities(); !done) return done;
  if (auto done = lower_limits(); !done) return done;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail_errno("PR_SET_NO_NEW_PRIVS", errno);
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return fail_errno("PR_SET_DUMPABLE", errno);
  if (!kSanitized) return filter_syscalls();
  log::warning("no seccomp filter: this is a build with AddressSanitizer");
  return {};
}

}  // namespace usblease::relay
