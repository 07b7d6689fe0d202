#include "plugin/libvirt/hook.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "common/boottime.h"
#include "common/config.h"
#include "common/text.h"
#include "plugin/libvirt/declarations.h"
#include "plugin/libvirt/domain_xml.h"
#include "plugin/libvirt/gate.h"
#include "plugin/libvirt/hook_call.h"

namespace usblease::hook {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kTellDeadlineMs = 2'000;  // the daemon finds out by itself later
constexpr std::size_t kMessageBytesMax = 2'000;

std::string names_of(const std::vector<Declared>& devices) {
  std::string out;
  for (const auto& d : devices) out += (out.empty() ? "" : ", ") + d.device;
  return out;
}

class Runner {
 public:
  explicit Runner(const UsbleaseHookRun& run) : run_(run), gate_(gate_of(run.operation)) {}

  int main() {
    const auto domain = parse_domain({run_.xml, run_.xml_size});
    if (!domain) return fails(domain.error());
    const Sysfs sysfs;
    auto devices = find_declarations(
        *domain, [this] { return config(); }, sysfs);
    if (devices && devices->empty()) return 0;
    if (!devices && gate_ != Gate::kTell) return fails(devices.error());
    // A guest whose declarations went bad while it ran holds its leases all the same: the end of its run is told.
    return tell(*domain, devices ? std::move(*devices) : std::vector<Declared>{});
  }

 private:
  Result<const Config*> config() {
    auto loaded = load_config(run_.config_path);
    if (!loaded) return tl::unexpected(loaded.error());
    config_ = std::move(*loaded);
    return &*config_;
  }

  int tell(const Domain& domain, std::vector<Declared> devices) {
    if (!config_ && !config()) return 0;  // only with Gate::kTell: else find_declarations has failed
    if (domain.uuid.empty()) return fails({ErrorCode::kBadInput, "its domain XML has no valid <uuid>"});
    // The daemon compares instants of this process with its own.
    if (const auto clock = check_time_namespace(); !clock) return fails(clock.error());
    const std::string names = names_of(devices);
    const std::uint64_t deadline_ns = run_.invoked_boottime_ns + deadline_ms(devices) * kNsPerMs;
    const auto verdict = call_daemon(
        config_->socket_path(),
        {run_.operation, run_.guest_name, domain.uuid, domain.id, std::move(devices), run_.invoked_boottime_ns},
        deadline_ns);
    return verdict ? 0 : verdict_of(verdict.error(), names);
  }

  [[nodiscard]] std::uint64_t deadline_ms(const std::vector<Declared>& devices) const {
    if (gate_ == Gate::kTell) return kTellDeadlineMs;
    std::uint64_t wait_s = 0;
    if (gate_ == Gate::kStart) {
      for (const auto& d : devices) wait_s = std::max<std::uint64_t>(wait_s, d.wait_s);
    }
    return config_->hook_deadline_ms + wait_s * 1000;
  }

  // What this program found out by itself: once the guest runs, its declarations were accepted before.
  [[nodiscard]] int fails(const Error& error) const { return gate_ == Gate::kStart ? refuse(error.message) : 0; }

  // What came of asking the daemon.
  [[nodiscard]] int verdict_of(const Error& error, const std::string& names) const {
    const bool stops = gate_ == Gate::kStart || (gate_ == Gate::kRefuse && error.code == ErrorCode::kRefused);
    return stops ? refuse("it declares " + names + ": " + error.message) : 0;
  }

  [[nodiscard]] int refuse(const std::string& message) const {
    const std::string line = "usblease: guest " + escape_text(std::string_view(run_.guest_name).substr(0, 255)) + ": " +
                             escape_text(std::string_view(message).substr(0, kMessageBytesMax)) + "\n";
    // One write, so that lines of several hooks do not mix. If it fails there is nowhere left to say so.
    [[maybe_unused]] const ssize_t count = write(STDERR_FILENO, line.data(), line.size());
    return 1;
  }

  const UsbleaseHookRun& run_;
  Gate gate_;
  std::optional<Config> config_;
};

}  // namespace
}  // namespace usblease::hook

int usblease_hook_run(const UsbleaseHookRun* run) noexcept { return usblease::hook::Runner(*run).main(); }
