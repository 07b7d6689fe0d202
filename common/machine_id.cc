#include "common/machine_id.h"

#include <glib.h>

#include "common/glib_ptr.h"

namespace usblease {

std::string machine_uuid() {
  for (const char* path : {"/sys/class/dmi/id/product_uuid", "/etc/machine-id"}) {
    char* text = nullptr;
    if (g_file_get_contents(path, &text, nullptr, nullptr) == FALSE) continue;
    const GChars owner(text);
    return std::string(g_strstrip(text)).substr(0, 64);
  }
  return "";
}

}  // namespace usblease
