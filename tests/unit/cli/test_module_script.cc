// Running install-module: with scripts that stand for it, and a program that really runs them.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "cli/interrupt.h"
#include "cli/qemu_module_script.h"
#include "tests/unit/cli/cases.h"

namespace {

using namespace usblease;
using namespace usblease::cli;

// A script in a directory of its own, removed with it.
class Script {
 public:
  explicit Script(const std::string& text, mode_t mode = 0755) {
    char path[] = "/tmp/usblease-script-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(path));
    directory_ = path;
    std::ofstream(this->path()) << "#!/bin/sh\n" << text;
    ck_assert_int_eq(chmod(this->path().c_str(), mode), 0);
  }
  Script(const Script&) = delete;
  Script& operator=(const Script&) = delete;
  ~Script() {
    unlink(path().c_str());
    unlink((path() + ".said").c_str());
    rmdir(directory_.c_str());
  }
  [[nodiscard]] std::string path() const { return directory_ + "/install-module"; }
  [[nodiscard]] std::string said() const {
    std::ifstream file(path() + ".said");
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::string directory_;
};

START_TEST(each_action_has_its_option) {
  const Script script("echo \"$#:$1\" >>\"$0.said\"\n");
  for (const ModuleAction action : {ModuleAction::kInstall, ModuleAction::kUndo, ModuleAction::kStatus}) {
    const auto report = run_module_script(script.path(), action, true);
    ck_assert(report.has_value());
    ck_assert(report->ok);
    ck_assert(report->modules.empty());
  }
  check_text(script.said(), "0:\n1:--undo\n1:--status\n");
}
END_TEST

START_TEST(what_it_says_of_the_modules_is_read) {
  const Script script(
      "echo 'hw-usb-host.so: ours, fits'; echo 'some word'; echo \"hw-usb-redirect.so: Debian's\"; exit 1\n");
  const auto report = run_module_script(script.path(), ModuleAction::kStatus, true);
  ck_assert(report.has_value());
  ck_assert(!report->ok);
  ck_assert_uint_eq(report->modules.size(), 2);
  check_text(report->modules.at("hw-usb-host.so"), "ours, fits");
  check_text(report->modules.at("hw-usb-redirect.so"), "Debian's");
}
END_TEST

START_TEST(a_script_that_is_killed_has_failed) {
  const Script script("kill -9 $$\n");
  const auto report = run_module_script(script.path(), ModuleAction::kInstall, true);
  ck_assert(report.has_value());
  ck_assert(!report->ok);
}
END_TEST

START_TEST(no_script) {
  const auto absent = run_module_script("/nonexistent/install-module", ModuleAction::kStatus, true);
  ck_assert(!absent && absent.error().code == ErrorCode::kNotFound);
  ck_assert(absent.error().message.find("/nonexistent/install-module is not there") == 0);
  const Script script("exit 0\n", 0644);
  const auto plain = run_module_script(script.path(), ModuleAction::kStatus, true);
  ck_assert(!plain && plain.error().code == ErrorCode::kDenied);
}
END_TEST

// A command blocks SIGINT to end in order (interrupt.h); the script must still end with Ctrl-C.
START_TEST(ctrl_c_is_for_the_script_too) {
  const Interrupt interrupt;
  const Script script("kill -INT $$; echo 'hw-usb-host.so: it went on'\n");
  const auto report = run_module_script(script.path(), ModuleAction::kInstall, true);
  ck_assert(report.has_value());
  ck_assert(!report->ok);
  ck_assert(report->modules.empty());
}
END_TEST

}  // namespace

TCase* module_script_cases() {
  TCase* cases = tcase_create("module script");
  tcase_add_test(cases, each_action_has_its_option);
  tcase_add_test(cases, what_it_says_of_the_modules_is_read);
  tcase_add_test(cases, a_script_that_is_killed_has_failed);
  tcase_add_test(cases, no_script);
  tcase_add_test(cases, ctrl_c_is_for_the_script_too);
  return cases;
}
