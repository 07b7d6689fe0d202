// What the daemon thinks of the modules that a process has loaded: module_tool PID BUILD_IDS_FILE
// Prints two words, for usb-host and for usb-redir: absent, enforces, stock, or "error WHAT".
//        module_tool FILE   prints its build-id
#include <cstdlib>
#include <iostream>
#include <string>

#include "daemon/host/qemu_module.h"

namespace {

using namespace usblease;

std::string use_of(pid_t pid, host::QemuModule module, const host::BuildIds& ours) {
  const auto use = host::module_in_use(pid, module, ours);
  if (!use) return "error " + use.error().message;
  switch (*use) {
    case host::ModuleUse::kAbsent:
      return "absent";
    case host::ModuleUse::kEnforces:
      return "enforces";
    case host::ModuleUse::kStock:
      return "stock";
  }
  return "?";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2) {
    const auto id = host::build_id_of(std::string(argv[1]));
    std::cout << (id ? *id : "error " + id.error().message) << '\n';
    return id ? EXIT_SUCCESS : EXIT_FAILURE;
  }
  if (argc != 3) return 2;
  const auto ours = host::read_build_ids(argv[2]);
  if (!ours) {
    std::cout << "error " << ours.error().message << '\n';
    return EXIT_FAILURE;
  }
  const pid_t pid = std::atoi(argv[1]);
  std::cout << use_of(pid, host::QemuModule::kUsbHost, *ours) << ' '
            << use_of(pid, host::QemuModule::kUsbRedirect, *ours) << '\n';
  return EXIT_SUCCESS;
}
