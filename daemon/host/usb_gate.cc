#include "daemon/host/usb_gate.h"

#include <fcntl.h>
#include <linux/usbdevice_fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "common/fd.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "common/usb_sysfs.h"
#include "daemon/fencer/binding.h"
#include "daemon/host/usb_kernel_fence.h"
#include "daemon/host/work_pool.h"
#include "plugin/bpf/support.h"

namespace usblease::host {
namespace {

Result<void> reset_device(const UsbPlace& place) {
  std::array<char, 32> node{};
  std::snprintf(node.data(), node.size(), "/dev/bus/usb/%03u/%03u", place.bus, place.device);
  const UniqueFd fd(open(node.data(), O_RDWR | O_CLOEXEC));
  if (!fd) return fail_errno(node.data(), errno);
  if (ioctl(fd.get(), USBDEVFS_RESET) == 0) return {};
  return fail_errno("resetting the USB device at " + place.port + " (reset=no leaves that out)", errno);
}

class SysfsGate final : public UsbGate {
 public:
  explicit SysfsGate(std::string run_dir) : run_dir_(std::move(run_dir)) { binding_.restore_defaults(run_dir_); }

  [[nodiscard]] Result<void> check_kernel() const override {
    if (auto supported = fence::check_support(); !supported) return supported;
    return fence::check_loaded();
  }

  void arm(const UsbPlace& place, const UsbLease& lease, const UsbHolder& holder, Done<void> done) override {
    run<void>(
        "fence " + place.port, [=] { return usb_kernel_fence::arm(place, lease, holder); }, std::move(done));
  }

  void extend(const UsbPlace& place, const UsbLease& lease) override {
    run<void>(
        "fence " + place.port, [=] { return usb_kernel_fence::extend(place, lease); },
        [place, lease](const Result<void>& extended) {
          if (extended) return;
          log::warning(
              "the kernel does not take a later deadline",
              {{"PORT", place.port}, {"TOKEN", std::to_string(lease.token)}, {"ERROR", extended.error().message}});
        });
  }

  void disarm(const UsbPlace& place, std::uint64_t token, Done<void> done) override {
    run<void>(
        "fence " + place.port, [=] { return usb_kernel_fence::disarm(place, token); }, std::move(done));
  }

  void look(const UsbPlace& place, Done<UsbLease> done) override {
    run<UsbLease>(
        "fence " + place.port, [=] { return usb_kernel_fence::look(place); }, std::move(done));
  }

  void count_refused(const std::vector<UsbPlace>& places, Done<std::vector<std::uint64_t>> done) override {
    run<std::vector<std::uint64_t>>(
        "refusals", [=] { return usb_kernel_fence::count_refused(places); }, std::move(done));
  }

  void bind(const UsbPlace& place, bool reset, Done<void> done) override {
    run<void>(
        "driver " + place.port,
        [=, binding = binding_, run_dir = run_dir_]() -> Result<void> {
          if (usb::Sysfs().inode_at(place.port) != place.inode)
            return fail(ErrorCode::kUnavailable, "it was unplugged from " + place.port);
          if (auto unbound = binding.unbind(place.port); !unbound) return unbound;
          if (auto bound = binding.bind_without_drivers(place.port, run_dir); !bound) return bound;
          return reset ? reset_device(place) : Result<void>();
        },
        std::move(done));
  }

  void unbind(const UsbPlace& place, Done<void> done) override {
    run<void>(
        "driver " + place.port,
        [=, binding = binding_]() -> Result<void> {
          // Somebody else's, if another device is there by now; this one's handles ended with its unplugging.
          if (usb::Sysfs().inode_at(place.port) != place.inode) return {};
          return binding.unbind(place.port);
        },
        std::move(done));
  }

 private:
  template <typename T>
  void run(const std::string& key, std::function<Result<T>()> work, Done<T> done) {
    const auto shared = std::make_shared<Done<T>>(std::move(done));
    const auto tell = [shared, alive = std::weak_ptr(alive_)](Result<T> result) {
      post([shared, alive, result = std::move(result)] {
        if (!alive.expired()) (*shared)(result);
      });
    };
    if (!pool_.submit(Lane::kChange, key, [work = std::move(work), tell] { tell(work()); }))
      tell(fail(ErrorCode::kUnavailable, "too many calls on USB devices wait"));
  }

  const std::string run_dir_;
  const fencer::Binding binding_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  WorkPool pool_;
};

}  // namespace

std::unique_ptr<UsbGate> make_usb_gate(const std::string& run_dir) { return std::make_unique<SysfsGate>(run_dir); }

}  // namespace usblease::host
