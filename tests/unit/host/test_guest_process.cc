// Which process is a guest's QEMU: real children that hold the lock of a PID file as QEMU does, and impostors.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>

#include "common/boottime.h"
#include "common/unix_socket.h"
#include "daemon/host/guest_process.h"
#include "tests/unit/host/fake_qemu.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::Child;
using test::expect_code;
using test::run_until;
using test::SilentInput;
using test::TemporaryDirectory;

constexpr const char* kUuid = "11111111-2222-3333-4444-555555555555";
constexpr const char* kOtherUuid = "11111111-2222-3333-4444-666666666666";

void write_file(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::trunc) << text; }

START_TEST(finds_the_holder) {
  const SilentInput input;
  const TemporaryDirectory directory;
  Child qemu(directory.path("vm one.pid"), kUuid);
  auto found = qemu_of(directory.path(), "vm one");
  ck_assert_msg(found.has_value(), "%s", found ? "" : found.error().message.c_str());
  ck_assert_int_eq(found->pid(), qemu.pid());
  ck_assert(found->alive());
  ck_assert_uint_eq(found->start_ticks(), *process_start_ticks(qemu.pid()));
  qemu.end();
  ck_assert(!found->alive());
  expect_code(qemu_of(directory.path(), "vm one").error(), ErrorCode::kNotFound, "does not run");
}
END_TEST

START_TEST(refuses_odd_files) {
  const SilentInput input;
  const TemporaryDirectory directory;
  const std::string run_dir = directory.path();
  expect_code(qemu_of(run_dir, "none").error(), ErrorCode::kNotFound, "guest none does not run");
  for (const char* name : {"", "../x", "a/b"}) {
    expect_code(qemu_of(run_dir, name).error(), ErrorCode::kBadInput, "not the name");
  }
  expect_code(qemu_of(run_dir, std::string(300, 'x')).error(), ErrorCode::kBadInput, "not the name");
  for (const char* text : {"", "x", "12x", "-5", "0", "1", "99999999999999999999", "12 13", " 12"}) {
    write_file(directory.path("g.pid"), text);
    expect_code(qemu_of(run_dir, "g").error(), ErrorCode::kRefused, "does not hold a process id");
  }
  ck_assert_int_eq(symlink("/proc/self/stat", directory.path("link.pid").c_str()), 0);
  ck_assert(!qemu_of(run_dir, "link").has_value());
  ck_assert_int_eq(mkfifo(directory.path("fifo.pid").c_str(), 0600), 0);
  ck_assert(!qemu_of(run_dir, "fifo").has_value());
}
END_TEST

START_TEST(a_pid_used_again_is_not_the_guest) {
  const SilentInput input;
  const TemporaryDirectory directory;
  // QEMU died, libvirt was not there to remove the file, and the PID went to somebody else, who even says -uuid.
  const Child other("", kUuid);
  write_file(directory.path("vm.pid"), std::to_string(other.pid()));
  expect_code(qemu_of(directory.path(), "vm").error(), ErrorCode::kNotFound, "nobody holds the lock");
  ck_assert(!is_qemu_of(other.pid(), directory.path(), "vm", kUuid).has_value());
  // QEMU holds the file open for writing, and names another process in it.
  const Child qemu(directory.path("vm.pid"), kUuid);
  write_file(directory.path("vm.pid"), std::to_string(other.pid()));
  expect_code(is_qemu_of(other.pid(), directory.path(), "vm", kUuid).error(), ErrorCode::kRefused, "lock is held by");
}
END_TEST

START_TEST(tells_guests_apart) {
  const SilentInput input;
  const TemporaryDirectory directory;
  const Child one(directory.path("one.pid"), kUuid);
  const Child two(directory.path("two.pid"), kOtherUuid);
  ck_assert(is_qemu_of(one.pid(), directory.path(), "one", kUuid).has_value());
  ck_assert(is_qemu_of(two.pid(), directory.path(), "two", kOtherUuid).has_value());
  expect_code(is_qemu_of(two.pid(), directory.path(), "one", kUuid).error(), ErrorCode::kRefused, "is not the QEMU");
  // The name was used again for another guest.
  expect_code(is_qemu_of(one.pid(), directory.path(), "one", kOtherUuid).error(), ErrorCode::kRefused, "-uuid");
  expect_code(is_qemu_of(one.pid(), directory.path(), "one", "").error(), ErrorCode::kRefused, "-uuid");
  expect_code(is_qemu_of(getpid(), directory.path(), "one", kUuid).error(), ErrorCode::kRefused, "is not the QEMU");
  expect_code(is_qemu_of(999'999'999, directory.path(), "one", kUuid).error(), ErrorCode::kRefused, "not exist");
}
END_TEST

UniqueFd accept_from(int listener) {
  UniqueFd fd;
  ck_assert(run_until([&] {
    fd.reset(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    return static_cast<bool>(fd);
  }));
  return fd;
}

START_TEST(verifies_a_peer) {
  const SilentInput input;
  const TemporaryDirectory directory;
  const std::string socket_path = directory.path("socket");
  const auto listener = listen_unix(socket_path, 0600, SOCK_STREAM);
  ck_assert(listener.has_value());
  {
    const Child qemu(directory.path("vm.pid"), kUuid, socket_path);
    const UniqueFd stream = accept_from(listener->get());
    const auto process = verify_peer(stream.get(), directory.path(), "vm", kUuid);
    ck_assert_msg(process.has_value(), "%s", process ? "" : process.error().message.c_str());
    ck_assert_int_eq(process->pid(), qemu.pid());

    const Child impostor("", kUuid, socket_path);
    const UniqueFd other = accept_from(listener->get());
    expect_code(verify_peer(other.get(), directory.path(), "vm", kUuid).error(), ErrorCode::kRefused,
                "is not the QEMU");
  }
  Child gone(directory.path("vm.pid"), kUuid, socket_path);
  const UniqueFd stream = accept_from(listener->get());
  gone.end();
  ck_assert(!verify_peer(stream.get(), directory.path(), "vm", kUuid).has_value());
}
END_TEST

START_TEST(tells_the_end_once) {
  const SilentInput input;
  const TemporaryDirectory directory;
  Child qemu(directory.path("vm.pid"), kUuid);
  int calls = 0;
  int never = 0;
  Result<ExitWatch> watch = fail(ErrorCode::kInternal, "");
  {
    auto process = qemu_of(directory.path(), "vm");
    ck_assert(process.has_value());
    const auto dropped = watch_exit(process->pidfd(), [&] { ++never; });
    watch = watch_exit(process->pidfd(), [&] { ++calls; });
  }
  ck_assert(watch.has_value());
  test::run_posted();
  ck_assert_int_eq(calls, 0);
  qemu.kill_only();
  ck_assert(run_until([&] { return calls > 0; }));
  for (int i = 0; i < 5; ++i) test::run_posted();
  ck_assert_int_eq(calls, 1);
  ck_assert_int_eq(never, 0);
  // A watch may go inside its own callback, and one that comes late is told as well.
  auto late = GuestProcess::open(qemu.pid());  // a zombie still has a pidfd
  if (late) {
    watch = watch_exit(late->pidfd(), [&] {
      ++calls;
      watch = fail(ErrorCode::kInternal, "");
    });
    ck_assert(run_until([&] { return calls == 2; }));
  }
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite("guest_process",
                                   {finds_the_holder, refuses_odd_files, a_pid_used_again_is_not_the_guest,
                                    tells_guests_apart, verifies_a_peer, tells_the_end_once},
                                   30);
}
