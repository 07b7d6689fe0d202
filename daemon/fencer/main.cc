// usblease-fence: puts the fence into the kernel, tends it, and unbinds what it fences off. The only program of the
// project that talks to BPF; it needs no other one of them.

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/fencer/binding.h"
#include "daemon/fencer/classify.h"
#include "daemon/fencer/command_line.h"
#include "daemon/fencer/guard.h"
#include "plugin/bpf/kernel_fence.h"
#include "plugin/bpf/loader.h"

namespace usblease::fencer {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kExitUnavailable = 3;  // this kernel cannot: there is no sense in trying again

using fence::KernelFence;

std::uint64_t deadline_ns(const CommandLine& line) { return boottime_now_ns() + line.for_ms * 1'000'000; }

Result<void> arm(KernelFence* fence, const CommandLine& line) {
  fence::Holder holder;
  if (!line.cgroup.empty()) {
    const auto found = fence::holder_of_cgroup(line.cgroup);
    if (!found) return tl::unexpected(found.error());
    holder = *found;
  }
  if (line.pid != 0) {
    const auto found = fence::holder_of_process(line.pid);
    if (!found) return tl::unexpected(found.error());
    holder.pid = found->pid;
    holder.start_ticks = found->start_ticks;
  }
  return fence->arm(line.device, {line.token, deadline_ns(line), holder});
}

// One line a device, "key=value" with blanks between, for people and scripts alike.
void print(const fence::Managed& managed, const Binding& binding) {
  const auto port = binding.port_of(managed.device);
  const std::uint64_t now_ns = boottime_now_ns();
  const bool live = managed.grant.deadline_ns > now_ns;
  std::printf(
      "device=%s port=%s bound=%s lease=%s token=%llu deadline_ns=%llu pid=%u cgroup=%llu allowed=%llu refused=%llu "
      "last_allowed_ns=%llu last_refused_ns=%llu\n",
      fence::to_text(managed.device).c_str(), port ? port->c_str() : "-",
      port && binding.is_bound(*port) ? "yes" : "no",
      live ? "live" : (managed.grant.deadline_ns == 0 ? "none" : "expired"),
      static_cast<unsigned long long>(managed.grant.token), static_cast<unsigned long long>(managed.grant.deadline_ns),
      managed.grant.holder.pid, static_cast<unsigned long long>(managed.grant.holder.cgroup),
      static_cast<unsigned long long>(managed.allowed), static_cast<unsigned long long>(managed.refused),
      static_cast<unsigned long long>(managed.last_allowed_ns),
      static_cast<unsigned long long>(managed.last_refused_ns));
}

Result<void> status() {
  if (auto supported = fence::check_support(); !supported) return supported;
  const auto fence = KernelFence::open();
  if (!fence) return tl::unexpected(fence.error());
  const auto table = fence->managed();
  if (!table) return tl::unexpected(table.error());
  std::printf("the fence is loaded; %zu managed\n", table->size());
  const Binding binding;
  for (const auto& managed : *table) print(managed, binding);
  return {};
}

Result<void> bind_or_unbind(const CommandLine& line) {
  const Binding binding;
  const auto port = binding.port_of(line.device);
  if (!port) return tl::unexpected(port.error());
  return line.verb == "bind" ? binding.bind(*port) : binding.unbind(*port);
}

Result<void> act(const CommandLine& line) {
  if (line.verb == "serve") return serve();
  if (line.verb == "classify") return classify_host();
  if (line.verb == "status") return status();
  if (line.verb == "unload") return fence::unload_fence();
  if (line.verb == "bind" || line.verb == "unbind") return bind_or_unbind(line);
  if (line.verb == "load") {
    const auto fence = fence::load_fence();
    return fence ? Result<void>{} : Result<void>(tl::unexpected(fence.error()));
  }
  auto fence = KernelFence::open();
  if (!fence) return tl::unexpected(fence.error());
  if (line.verb == "manage") return fence->manage(line.device);
  if (line.verb == "forget") return fence->forget(line.device);
  if (line.verb == "arm") return arm(&*fence, line);
  if (line.verb == "extend") return fence->extend(line.device, line.token, deadline_ns(line));
  return fence->disarm(line.device, line.token);
}

int run(const std::vector<std::string>& words) {
  log::setup("usblease-fence", log::Level::kInfo);
  if (words.size() == 1 && (words[0] == "help" || words[0] == "--help")) {
    std::cout << usage() << '\n';
    return 0;
  }
  const auto line = parse_command_line(words);
  if (!line) {
    std::cerr << "usblease-fence: " << line.error().message << '\n';
    return kExitUsage;
  }
  auto done = check_time_namespace();  // or a deadline would mean another instant to the kernel
  if (done) done = act(*line);
  if (done) return 0;
  std::cerr << "usblease-fence: " << done.error().message << '\n';
  return done.error().code == ErrorCode::kUnavailable ? kExitUnavailable : kExitFailed;
}

}  // namespace
}  // namespace usblease::fencer

int main(int argc, char** argv) { return usblease::fencer::run(std::vector<std::string>(argv + 1, argv + argc)); }
