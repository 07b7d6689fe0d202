// The lease pages of this host's guests (plugin/lease-page/lease_page.h): one for each device that a guest here holds,
// from the grant until its end is confirmed. QEMU reads them, if it carries our code, and stops the device by itself.
//
// A page opens nothing: what a QEMU may do with it ends at the guest socket, and whether anything passes there is the
// home's decision. So a page is written as soon as there is a lease, before the guest is started or the device is
// plugged in, and may outlive its writer: the deadline in it passes by itself.
//
// Pages of devices on the host's own bus (usb-BBB-DDD) have a name that says nothing of the device: whoever serves that
// bus has to find those of an earlier daemon itself; adopt() leaves them alone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "common/error.h"
#include "plugin/lease-page/lease_page_writer.h"

namespace usblease::host {

// Who may use a device, as its page says it.
struct PageGrant {
  std::string device;
  std::uint64_t token = 0;
  std::string guest_uuid;
  std::string start_nonce;        // of record.Start
  std::uint64_t deadline_ns = 0;  // CLOCK_BOOTTIME; 0 and what has passed: no right yet, or no longer
};

class LeasePages {
 public:
  // `trouble_changed` is called when trouble() is another one, from inside of the call that found it.
  explicit LeasePages(std::string run_dir, std::function<void()> trouble_changed = nullptr);

  // Makes RUN_DIR/pages, finds the pages of an earlier daemon in it, and removes what is none.
  void adopt();

  // The page of the device behind this guest's socket grants it from now on, or goes on granting it, with a deadline
  // that never moves back. Pages of earlier tokens and of other guests are closed. What fails is logged, and holds()
  // says no.
  void grant(const PageGrant& grant);
  void renew(const std::string& device, std::uint64_t token, std::uint64_t deadline_ns);
  // Only this process may use the grant, by the number that it has for itself. 0: not known, no-op.
  void bind(const std::string& device, std::uint64_t token, pid_t pid);
  // The device stops now; the page stays, so that QEMU can say why.
  void revoke(const std::string& device, std::uint64_t token);
  // It is over: the pages of the device up to this token are revoked and go away.
  void close(const std::string& device, std::uint64_t through_token);
  // Closes every page that is not `wanted`.
  void keep(const std::function<bool(const std::string& device, std::uint64_t token)>& wanted);

  // There is a page that grants the device under this token, and what was last to be written is in it.
  [[nodiscard]] bool holds(const std::string& device, std::uint64_t token) const;
  [[nodiscard]] std::size_t count() const { return pages_.size(); }
  // Empty when every write succeeded since the last that failed, else what is wrong.
  [[nodiscard]] const std::string& trouble() const { return trouble_; }

 private:
  struct Page {
    lease_page::Writer writer;
    bool current = true;  // the last write succeeded
  };
  using Key = std::pair<std::string, std::string>;  // device, guest UUID
  [[nodiscard]] std::optional<Key> granting(const std::string& device, std::uint64_t token) const;
  Page* find(const std::string& device, std::uint64_t token);
  void adopt_one(const std::string& name);
  Result<void> write_grant(const PageGrant& grant);
  void close_one(std::map<Key, Page>::iterator at);
  void note(const Result<void>& written, const std::string& device, std::uint64_t token);

  std::string run_dir_;
  std::function<void()> trouble_changed_;
  std::map<Key, Page> pages_;
  std::string trouble_;
};

}  // namespace usblease::host
