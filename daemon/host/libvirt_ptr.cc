#include "daemon/host/libvirt_ptr.h"

#include "common/text.h"

namespace usblease::host {
namespace {

ErrorCode meaning(int code) {
  switch (code) {
    case VIR_ERR_NO_DOMAIN:
      return ErrorCode::kNotFound;
    case VIR_ERR_NO_CONNECT:
    case VIR_ERR_INVALID_CONN:
    case VIR_ERR_RPC:
      return ErrorCode::kUnavailable;
    case VIR_ERR_OPERATION_TIMEOUT:
      return ErrorCode::kTimedOut;
    case VIR_ERR_OPERATION_DENIED:
    case VIR_ERR_OPERATION_INVALID:
    case VIR_ERR_OPERATION_FAILED:
    case VIR_ERR_OPERATION_UNSUPPORTED:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
      return ErrorCode::kRefused;
    default:
      return ErrorCode::kInternal;
  }
}

}  // namespace

int libvirt_error_code() {
  const virErrorPtr last = virGetLastError();
  return last != nullptr ? last->code : VIR_ERR_OK;
}

Error libvirt_error(const std::string& what) {
  const virErrorPtr last = virGetLastError();
  const std::string message = last != nullptr && last->message != nullptr ? last->message : "no reason given";
  return Error{meaning(libvirt_error_code()), what + ": libvirt says: " + escape_text(message.substr(0, 1024))};
}

}  // namespace usblease::host
