// What a software device saw, in a file that the test reads while QEMU runs: how many packets reached it, and how many
// of them after the right to it had ended.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "common/boottime.h"
#include "common/fd.h"
#include "plugin/lease-page/lease_page.h"

namespace usblease::test {

// The file's content; tests/qemu/qemu_lab.py reads it.
struct Sightings {
  std::uint64_t packets = 0;
  std::uint64_t late = 0;         // packets that came when the page granted nothing any more
  std::uint64_t late_max_ns = 0;  // the longest time after the end of the right
  std::uint64_t last_packet_ns = 0;
  std::uint64_t opens = 0;
  std::uint64_t closes = 0;
  std::uint64_t resets = 0;            // of the device, by whoever drives it
  std::uint64_t drivers_attached = 0;  // the host's own drivers
  std::uint64_t last_close_ns = 0;
};

class Witness {
 public:
  // `page` may be empty: nothing counts as late then.
  Witness(const std::string& file, std::string page) : page_(std::move(page)) {
    const UniqueFd fd(open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (!fd || ftruncate(fd.get(), sizeof(Sightings)) != 0) abort();
    void* const at = mmap(nullptr, sizeof(Sightings), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) abort();
    seen = static_cast<Sightings*>(at);
  }

  void packet() {
    const std::uint64_t now_ns = boottime_now_ns();
    ++seen->packets;
    seen->last_packet_ns = now_ns;
    if (page_.empty()) return;
    const std::uint64_t end_ns = end_of_right_ns(now_ns);
    if (now_ns < end_ns) return;
    ++seen->late;
    seen->late_max_ns = std::max(seen->late_max_ns, now_ns - end_ns);
  }

  Sightings* seen = nullptr;

 private:
  // A deadline is known to the nanosecond; anything else ended when it was first noticed here, at the latest.
  std::uint64_t end_of_right_ns(std::uint64_t now_ns) {
    UsbLeaseSlot slot{};
    const UniqueFd fd(usb_lease_open(page_.c_str()));
    if (fd && usb_lease_read(fd.get(), &slot) == 0 && slot.state == USB_LEASE_GRANTED) {
      ended_ns_ = 0;
      return slot.deadline_ns;
    }
    if (ended_ns_ == 0) ended_ns_ = now_ns;
    return ended_ns_;
  }

  std::string page_;
  std::uint64_t ended_ns_ = 0;
};

}  // namespace usblease::test
