#include "daemon/host/qemu_witness.h"

#include <utility>

namespace usblease::host {

QemuWitness::QemuWitness(int stream, pid_t pid, std::string module_state, std::function<void(Result<void>)> done)
    : pid_(pid), module_state_(std::move(module_state)), done_(std::move(done)) {
  readable_ = watch_fd(stream, G_IO_IN, [this](GIOCondition /*ready*/) { end(look()); });
}

Result<void> QemuWitness::look() const {
  const auto ours = read_build_ids(module_state_ + "/build-ids");
  if (!ours) return tl::unexpected(ours.error());
  const auto use = module_in_use(pid_, QemuModule::kUsbRedirect, *ours);
  if (!use) return tl::unexpected(use.error());
  if (*use == ModuleUse::kEnforces) return {};
  return fail(ErrorCode::kRefused,
              "the guest's QEMU does not stop the device by itself, which its policy (min_rung) wants: it has loaded "
              "another hw-usb-redirect.so than ours; `usblease host info` says whether ours is installed, and a guest "
              "that is started afterwards has it");
}

// The callback may destroy this.
void QemuWitness::end(const Result<void>& result) {
  const SourceHandle readable = std::move(readable_);
  const auto done = std::exchange(done_, nullptr);
  if (done) done(result);
}

}  // namespace usblease::host
