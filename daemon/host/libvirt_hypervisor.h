// The hypervisor through libvirt's C API (>= 9.0).
//
// Threads: the main loop (all of hypervisor.h), one that connects (libvirt_link.h), some that call (work_pool.h), and
// libvirt's event loop (libvirt_events.h). Results and events are posted to the main loop.
//
// Events are level-triggered: what libvirt says is a reason to look at the guest, in order and in one lane with the
// list after a connect. So an event that is late, doubled or lost in a reconnect tells nothing that is not so.
#pragma once

#include <memory>
#include <string>

#include "daemon/host/hypervisor.h"

namespace usblease::host {

struct LibvirtOptions {
  std::string uri = "qemu:///system";         // "none": no hypervisor, every call answers kUnavailable
  std::string run_dir = "/run/libvirt/qemu";  // libvirt's PID files
};

// Connects at start(), again and again (0.2 s to 5 s apart), for as long as it lives. While there is no connection
// calls answer kUnavailable at once.
std::unique_ptr<Hypervisor> make_libvirt_hypervisor(LibvirtOptions options);

}  // namespace usblease::host
