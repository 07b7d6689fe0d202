// Which rungs a host says that it has: the `qemu` rung, from every side.
#include <dlfcn.h>
#include <glib.h>

#include "common/glib_ptr.h"
#include "daemon/host/rungs.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::TemporaryDirectory;

struct Host {
  const TemporaryDirectory state;
  Config config;

  Host() {
    Dl_info info{};
    ck_assert(dladdr(reinterpret_cast<void*>(&g_main_context_iteration), &info) != 0);
    char* bytes = nullptr;
    gsize size = 0;
    ck_assert(g_file_get_contents(info.dli_fname, &bytes, &size, nullptr));
    const GChars owner(bytes);
    const std::string module = std::string(bytes, size) + "qemu_stamp_0123456789abcdef0123456789abcdef01234567";
    for (const std::string name : {"hw-usb-host.so", "hw-usb-redirect.so"}) {
      write(name, module);
      write(name + ".distrib", module);
    }
    write("directory", state.path() + "\n");
    write("build-ids", *build_id_of(info.dli_fname) + "\n");
  }
  void write(const std::string& name, const std::string& content) const {
    ck_assert(
        g_file_set_contents(state.path(name).c_str(), content.data(), static_cast<gssize>(content.size()), nullptr));
  }
  [[nodiscard]] api::RungReport qemu(const std::string& page_trouble = "") const {
    for (const auto& report : report_rungs(config, {true, page_trouble}, state.path())) {
      if (report.rung() == record::RUNG_QEMU) return report;
    }
    ck_abort_msg("the rung is not reported");
  }
  void lacks(const std::string& why, const std::string& page_trouble = "") const {
    const auto report = qemu(page_trouble);
    ck_assert(!report.available());
    ck_assert_msg(report.detail().find(why) != std::string::npos, "%s", report.detail().c_str());
  }
};

START_TEST(fitting_modules_are_the_rung) {
  const Host host;
  ck_assert(host.qemu().available());
}
END_TEST

START_TEST(without_modules_there_is_no_rung) {
  const Host host;
  ck_assert_int_eq(unlink(host.state.path("build-ids").c_str()), 0);
  host.lacks("no modules of ours are installed in QEMU; `usblease host install-qemu-module`");
}
END_TEST

START_TEST(without_pages_there_is_no_rung) {
  const Host host;
  host.lacks("no room to write", "no room to write the lease page");
}
END_TEST

// The modules would take its devices for ones that nobody manages, and let everything pass.
START_TEST(with_another_run_directory_there_is_no_rung) {
  Host host;
  host.config.run_dir = "/run/other";
  host.lacks("run_dir is /run/other");
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite("rungs",
                                   {fitting_modules_are_the_rung, without_modules_there_is_no_rung,
                                    without_pages_there_is_no_rung, with_another_run_directory_there_is_no_rung},
                                   60);
}
