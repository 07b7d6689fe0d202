// What a host without the fence is told.
#include "plugin/bpf/support.h"
#include "tests/lib/check_suite.h"
#include "tests/unit/fencer/tree.h"

using namespace usblease;

namespace {

START_TEST(kernel_without_types) {
  const test::Tree sysfs;
  sysfs.put("kernel/security/lsm", "yama,bpf\n");
  const auto support = fence::check_support(sysfs.root());
  ck_assert(!support);
  ck_assert_msg(support.error().message.find("does not describe its types") != std::string::npos, "%s",
                support.error().message.c_str());
}
END_TEST

START_TEST(kernel_without_the_module) {
  const test::Tree sysfs;
  sysfs.put("kernel/btf/vmlinux", "BTF");
  sysfs.put("kernel/security/lsm", "yama,bpfilter,apparmor\n");
  const auto support = fence::check_support(sysfs.root());
  ck_assert(!support);
  ck_assert_msg(support.error().message.find("lsm=yama,bpfilter,apparmor,bpf") != std::string::npos, "%s",
                support.error().message.c_str());
}
END_TEST

START_TEST(list_that_cannot_be_read) {
  const test::Tree sysfs;
  sysfs.put("kernel/btf/vmlinux", "BTF");
  const auto support = fence::check_support(sysfs.root());
  ck_assert(!support);
  ck_assert_msg(support.error().message.find("mount -t securityfs") != std::string::npos, "%s",
                support.error().message.c_str());
}
END_TEST

START_TEST(kernel_that_can) {
  const test::Tree sysfs;
  sysfs.put("kernel/btf/vmlinux", "BTF");
  for (const char* list : {"bpf\n", "yama,bpf,apparmor\n", "bpf,yama\n"}) {
    sysfs.put("kernel/security/lsm", list);
    ck_assert_ok(fence::check_support(sysfs.root()));
  }
}
END_TEST

START_TEST(loaded_or_not) {
  const test::Tree root;
  ck_assert(!fence::check_loaded(root.root()));
  root.put(fence::version_directory(".") + "/link_fence_ioctl", "");
  ck_assert_ok(fence::check_loaded(root.root()));
}
END_TEST

}  // namespace

int main() {
  return test::run_suite("fence support", {kernel_without_types, kernel_without_the_module, list_that_cannot_be_read,
                                           kernel_that_can, loaded_or_not});
}
