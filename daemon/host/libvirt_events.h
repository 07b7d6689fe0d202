// libvirt's event loop, on a thread and a GMainContext of its own, so that nothing in libvirt ever runs on (or holds
// up) the main loop. libvirt's default implementation would use the default GMainContext, which is ours.
#pragma once

#include "common/error.h"

namespace usblease::host {

// Once per process, before the first connection is opened; later calls do nothing. Registers the event loop, starts its
// thread (which lives as long as the process: libvirt cannot take back a registration) and keeps libvirt from printing
// errors to stderr.
Result<void> prepare_libvirt();

}  // namespace usblease::host
