// Which modules a process has loaded: build-ids of real files, a real process, and files that are no modules.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "daemon/host/qemu_module.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using host::ModuleUse;
using host::QemuModule;

namespace {

// A small shared object that every test machine has, as the module's stand-in.
std::string some_library() {
  Dl_info info{};
  ck_assert(dladdr(reinterpret_cast<void*>(&zlibVersion), &info) != 0);
  return info.dli_fname;
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

START_TEST(build_ids_are_those_of_readelf) {
  const std::string path = some_library();
  const auto id = host::build_id_of(path);
  ck_assert_ok(id);
  FILE* const pipe = popen(("readelf -n " + path + " | sed -n 's/.*Build ID: //p' | head -n 1").c_str(), "r");
  ck_assert_ptr_nonnull(pipe);
  std::array<char, 64> line{};
  ck_assert_ptr_nonnull(fgets(line.data(), line.size(), pipe));
  pclose(pipe);
  ck_assert_text_eq(*id + "\n", line.data());
}
END_TEST

START_TEST(files_that_are_no_modules) {
  const test::TemporaryDirectory directory;
  const auto id_of = [&](const std::string& bytes) { return host::build_id_of(directory.write("module", bytes)); };
  ck_assert_fails(id_of(""), ErrorCode::kBadInput, "no ELF file");
  ck_assert_fails(id_of("#!/bin/sh\n"), ErrorCode::kBadInput, "no ELF file");
  ck_assert_fails(id_of(std::string(4096, '\x7f')), ErrorCode::kBadInput, "no ELF file");
  ck_assert(!host::build_id_of(directory.file("absent")));
  // Cut anywhere, and with any byte of its beginning changed, it is refused or read, but never crashes the reader.
  const std::string good = content(some_library());
  for (std::size_t size = 0; size < 2048; size += 7) (void)id_of(good.substr(0, size));
  for (std::size_t at = 0; at < 1024; ++at) {
    std::string damaged = good.substr(0, 8192);
    damaged[at] = static_cast<char>(damaged[at] ^ 0xff);
    (void)id_of(damaged);
  }
}
END_TEST

START_TEST(lists_of_build_ids) {
  const test::TemporaryDirectory directory;
  const auto ids = host::read_build_ids(directory.write("ids", "0123456789abcdef\nfedcba9876543210\n"));
  ck_assert_ok(ids);
  ck_assert_uint_eq(ids->size(), 2);
  ck_assert_fails(host::read_build_ids(directory.file("absent")), ErrorCode::kNotFound, "no modules of ours");
  ck_assert_fails(host::read_build_ids(directory.write("ids", "0123456789ABCDEF\n")), ErrorCode::kBadInput,
                  "no build-id");
  ck_assert_fails(host::read_build_ids(directory.write("ids", "\n")), ErrorCode::kBadInput, "no build-id");
  std::string many;
  for (int line = 0; line < 65; ++line) many += "0123456789abcd" + std::to_string(10 + line) + "\n";
  ck_assert_fails(host::read_build_ids(directory.write("ids", many)), ErrorCode::kBadInput, "too many");
}
END_TEST

// The stand-in under the module's name, mapped by this process itself.
START_TEST(what_a_process_has_loaded) {
  if (geteuid() != 0) return;  // map_files is root's
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("hw-usb-host.so", content(some_library()));
  const auto id = host::build_id_of(path);
  ck_assert_ok(id);
  const auto use = [&](const host::BuildIds& ours) {
    const auto found = host::module_in_use(getpid(), QemuModule::kUsbHost, ours);
    ck_assert_ok(found);
    return *found;
  };
  ck_assert(use({*id}) == ModuleUse::kAbsent);
  void* const loaded = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ck_assert_ptr_nonnull(loaded);
  ck_assert(use({*id}) == ModuleUse::kEnforces);
  ck_assert(use({"0123456789abcdef"}) == ModuleUse::kStock);
  ck_assert(use({}) == ModuleUse::kStock);
  // An upgrade replaces the file; what runs is still the old one.
  ck_assert_int_eq(unlink(path.c_str()), 0);
  (void)directory.write("hw-usb-host.so", "a new one");
  ck_assert(use({*id}) == ModuleUse::kEnforces);
  const auto other = host::module_in_use(getpid(), QemuModule::kUsbRedirect, {*id});
  ck_assert_ok(other);
  ck_assert(*other == ModuleUse::kAbsent);
  dlclose(loaded);
}
END_TEST

START_TEST(a_process_that_is_gone) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ck_assert_int_eq(waitpid(child, nullptr, 0), child);
  ck_assert_fails(host::module_in_use(child, QemuModule::kUsbHost, {}), ErrorCode::kNotFound, "has ended");
}
END_TEST

// A directory of modules and what install-module writes down of it.
struct Installation {
  const test::TemporaryDirectory state;
  const test::TemporaryDirectory modules;
  const std::string library = content(some_library());
  const std::string stamp = "qemu_stamp_0123456789abcdef0123456789abcdef01234567";

  Installation() {
    for (const std::string name : {"hw-usb-host.so", "hw-usb-redirect.so"}) {
      put(name, stamp);
      put(name + ".distrib", stamp);
    }
    (void)state.write("directory", modules.file("") + "\n");
    (void)state.write("build-ids", *host::build_id_of(some_library()) + "\n");
  }
  // The stamp is a symbol's name, somewhere in the file.
  void put(const std::string& name, const std::string& with) const { (void)modules.write(name, library + with); }
  [[nodiscard]] Result<void> check() const {
    const std::string directory = state.file("");
    return host::check_installed(directory.substr(0, directory.size() - 1));
  }
};

START_TEST(modules_that_are_installed_and_fit) {
  const Installation installed;
  ck_assert_ok(installed.check());
}
END_TEST

START_TEST(modules_that_are_not_installed) {
  const Installation i;
  ck_assert_int_eq(unlink(i.state.file("directory").c_str()), 0);
  ck_assert_fails(i.check(), ErrorCode::kNotFound, "install-qemu-module");
  ck_assert_int_eq(unlink(i.state.file("build-ids").c_str()), 0);
  ck_assert_fails(i.check(), ErrorCode::kNotFound, "no modules of ours");
}
END_TEST

// What dpkg leaves when it has updated QEMU, before or after its hook has run.
START_TEST(modules_that_do_not_fit_any_more) {
  const Installation i;
  i.put("hw-usb-redirect.so.distrib", "qemu_stamp_ffffffffffffffffffffffffffffffffffffffff");
  ck_assert_fails(i.check(), ErrorCode::kRefused, "does not fit the installed QEMU");
  i.put("hw-usb-redirect.so.distrib", "");
  ck_assert_fails(i.check(), ErrorCode::kBadInput, "no stamp");
  ck_assert_int_eq(unlink(i.modules.file("hw-usb-redirect.so.distrib").c_str()), 0);
  ck_assert_fails(i.check(), ErrorCode::kNotFound, "is not there");
  (void)i.state.write("build-ids", "0123456789abcdef\n");
  ck_assert_fails(i.check(), ErrorCode::kRefused, "is not ours");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("qemu module");
  TCase* const cases = tcase_create("qemu module");
  tcase_set_timeout(cases, 60);
  for (const TTest* test : {build_ids_are_those_of_readelf, files_that_are_no_modules, lists_of_build_ids,
                            what_a_process_has_loaded, a_process_that_is_gone, modules_that_are_installed_and_fit,
                            modules_that_are_not_installed, modules_that_do_not_fit_any_more}) {
    tcase_add_test(cases, test);
  }
  suite_add_tcase(suite, cases);
  return test::run_suite(suite);
}
