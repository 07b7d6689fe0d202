#include "daemon/cluster/transport.h"

namespace usblease::cluster {

const char* down_reason_name(DownReason reason) {
  switch (reason) {
    case DownReason::kRefused:
      return "refused";
    case DownReason::kReset:
      return "reset";
    case DownReason::kClosed:
      return "closed";
    case DownReason::kTimedOut:
      return "timed-out";
    case DownReason::kUntrusted:
      return "untrusted";
    case DownReason::kForbidden:
      return "forbidden";
    case DownReason::kUnresolved:
      return "unresolved";
  }
  return "?";
}

}  // namespace usblease::cluster
