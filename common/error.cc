#include "common/error.h"

#include <glib.h>

namespace usblease {

tl::unexpected<Error> fail_errno(const std::string& what, int error_number) {
  return fail(ErrorCode::kInternal, what + ": " + g_strerror(error_number));
}

}  // namespace usblease
