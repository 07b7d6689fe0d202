// The daemon's side of a lease page: the one writer of the file that QEMU reads (lease_page.h has the format).
//
// Every call is one or two pwrite(2) on tmpfs, microseconds, and has reached every reader when it returns: the kernel's
// page cache is what they read, and its inotify wakes them. A page outlives its writer; whoever comes next continues
// it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/fd.h"
#include "plugin/lease-page/lease_page.h"

namespace usblease::lease_page {

using Id = std::array<std::uint8_t, 16>;

struct Grant {
  std::uint64_t token = 0;        // greater than every token that the page ever said
  std::uint64_t deadline_ns = 0;  // CLOCK_BOOTTIME
  Id guest{};                     // UUID, in the order of its text
  Id start{};                     // nonce of this start of the guest, not all zero
  std::uint32_t pid = 0;          // QEMU's PID as QEMU sees it (the last NSpid of /proc/PID/status); 0: not known yet
};

// RUN_DIR/pages/…, by what QEMU knows of its device.
std::string usb_page_path(const std::string& run_dir, unsigned bus, unsigned device);
std::string redir_page_path(const std::string& run_dir, const std::string& guest_uuid, const std::string& device);
// RUN_DIR/pages, which everybody may read. Idempotent.
Result<void> make_directory(const std::string& run_dir);
// The names of what is in it, at most 4096 of them.
Result<std::vector<std::string>> list_pages(const std::string& run_dir);
// "6ba7b810-9dad-…" → 16 bytes; kBadInput.
Result<Id> id_from_uuid(const std::string& uuid);

class Writer {
 public:
  // Continues the page at `path`, or makes one that says "free" where there is none, or none that can be trusted: then
  // whoever reads the old one sees that its file is gone, and has no lease. The directory must exist and belong to us.
  static Result<Writer> open(std::string path);

  // The page now grants. kRefused: the token is not greater than the last one.
  Result<void> grant(const Grant& grant);
  // A later deadline for what is granted, in place. kRefused: nothing is granted, or it would end earlier.
  Result<void> renew(std::uint64_t deadline_ns);
  // Names the process that alone may use the grant from now on. kRefused: nothing is granted, or another is named.
  Result<void> bind(std::uint32_t pid);
  // Ends what is granted, at once. Nothing to end: no-op.
  Result<void> revoke();
  // Takes the page's name away: whoever reads it has no lease. The writer is of no use afterwards.
  Result<void> remove();

  [[nodiscard]] const UsbLeaseSlot& now() const { return now_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  Writer(std::string path, UniqueFd fd, const UsbLeaseSlot& now)
      : path_(std::move(path)), fd_(std::move(fd)), now_(now) {}
  Result<void> write_next(UsbLeaseSlot next);
  Result<void> write_both(const UsbLeaseSlot& next);

  std::string path_;
  UniqueFd fd_;
  UsbLeaseSlot now_;
};

}  // namespace usblease::lease_page
