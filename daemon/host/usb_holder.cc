#include "daemon/host/usb_holder.h"

#include <unistd.h>

#include "common/boottime.h"

namespace usblease::host {

UsbHolder this_process() { return {getpid(), process_start_ticks(getpid()).value_or(0)}; }

}  // namespace usblease::host
