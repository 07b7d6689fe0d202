// The lease pages that the daemon keeps, seen with the reader that QEMU has.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <optional>

#include "common/fd.h"
#include "daemon/host/lease_pages.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::expect_text;
using test::TemporaryDirectory;

constexpr const char* kGuest = "11111111-2222-4333-8444-555555555555";
constexpr const char* kOtherGuest = "21111111-2222-4333-8444-555555555555";
constexpr const char* kNonce = "0123456789abcdef";

// A reader as QEMU is one: it keeps what it opened.
class Reader {
 public:
  explicit Reader(const std::string& path) : fd_(usb_lease_open(path.c_str())) {}
  // 0 or -errno; then `slot` says what was read.
  int look() { return fd_.get() < 0 ? -ENOENT : usb_lease_read(fd_.get(), &slot); }
  UsbLeaseSlot slot{};

 private:
  UniqueFd fd_;
};

struct Fixture {
  Fixture() { start(); }
  // As a new daemon does.
  void start() {
    pages = std::make_unique<LeasePages>(directory.path(), [this] { ++changes; });
    pages->adopt();
  }
  [[nodiscard]] std::string path(const std::string& device, const std::string& guest = kGuest) const {
    return directory.path("pages/redir-" + guest + "-" + device);
  }
  [[nodiscard]] bool exists(const std::string& device, const std::string& guest = kGuest) const {
    struct stat info {};
    return lstat(path(device, guest).c_str(), &info) == 0;
  }
  void grant(std::uint64_t token, std::uint64_t deadline_ns, const std::string& guest = kGuest) {
    pages->grant({"dongle", token, guest, kNonce, deadline_ns});
  }
  const TemporaryDirectory directory;
  std::unique_ptr<LeasePages> pages;
  int changes = 0;
};

START_TEST(a_grant_is_what_qemu_reads) {
  Fixture f;
  f.grant(7, 1000);
  ck_assert(f.pages->holds("dongle", 7));
  ck_assert(!f.pages->holds("dongle", 8));
  ck_assert(!f.pages->holds("other", 7));
  Reader qemu(f.path("dongle"));
  ck_assert_int_eq(qemu.look(), 0);
  ck_assert_int_eq(qemu.slot.state, USB_LEASE_GRANTED);
  ck_assert_uint_eq(qemu.slot.token, 7);
  ck_assert_uint_eq(qemu.slot.deadline_ns, 1000);
  ck_assert_uint_eq(qemu.slot.guest[0], 0x11);
  ck_assert_uint_eq(qemu.slot.guest[15], 0x55);
  ck_assert_int_eq(memcmp(qemu.slot.start, kNonce, sizeof qemu.slot.start), 0);
  ck_assert_uint_eq(qemu.slot.pid, 0);
  struct stat info {};
  ck_assert_int_eq(stat(f.path("dongle").c_str(), &info), 0);
  ck_assert_int_eq(info.st_mode & 07777, 0644);  // QEMU is another user
  ck_assert_int_eq(stat(f.directory.path("pages").c_str(), &info), 0);
  ck_assert_int_eq(info.st_mode & 07777, 0755);
}
END_TEST

START_TEST(renewals_bindings_and_the_end_reach_the_reader_in_place) {
  Fixture f;
  f.grant(7, 1000);
  Reader qemu(f.path("dongle"));
  f.pages->renew("dongle", 7, 2000);
  f.pages->renew("dongle", 7, 1500);  // an older answer
  f.pages->renew("dongle", 6, 9000);  // of another token
  f.grant(7, 1800);                   // the same lease again
  ck_assert_int_eq(qemu.look(), 0);
  ck_assert_uint_eq(qemu.slot.deadline_ns, 2000);
  f.pages->bind("dongle", 7, 0);
  f.pages->bind("dongle", 7, 4711);
  ck_assert_int_eq(qemu.look(), 0);
  ck_assert_uint_eq(qemu.slot.pid, 4711);
  f.pages->revoke("dongle", 6);
  ck_assert(f.pages->holds("dongle", 7));
  f.pages->revoke("dongle", 7);
  ck_assert_int_eq(qemu.look(), 0);
  ck_assert_int_eq(qemu.slot.state, USB_LEASE_REVOKED);
  ck_assert(!f.pages->holds("dongle", 7));
  f.pages->renew("dongle", 7, 3000);  // a late answer brings nothing back
  ck_assert_int_eq(qemu.look(), 0);
  ck_assert_int_eq(qemu.slot.state, USB_LEASE_REVOKED);
  f.pages->close("dongle", 6);
  ck_assert(f.exists("dongle"));
  f.pages->close("dongle", 7);
  ck_assert(!f.exists("dongle"));
  ck_assert_int_eq(qemu.look(), -ESTALE);
  ck_assert_uint_eq(f.pages->count(), 0);
  ck_assert_int_eq(f.changes, 0);
}
END_TEST

START_TEST(a_new_token_ends_what_was_before) {
  Fixture f;
  f.grant(7, 1000);
  Reader same_guest(f.path("dongle"));
  f.grant(8, 2000);
  ck_assert_int_eq(same_guest.look(), -ESTALE);
  Reader now(f.path("dongle"));
  ck_assert_int_eq(now.look(), 0);
  ck_assert_uint_eq(now.slot.token, 8);
  f.grant(9, 3000, kOtherGuest);
  ck_assert_int_eq(now.look(), -ESTALE);
  ck_assert(!f.exists("dongle"));
  ck_assert(f.exists("dongle", kOtherGuest));
  ck_assert_uint_eq(f.pages->count(), 1);
}
END_TEST

START_TEST(the_next_daemon_goes_on) {
  Fixture f;
  f.grant(7, 1000);
  f.pages->grant({"idle", 3, kGuest, kNonce, 1000});
  f.pages->revoke("idle", 3);
  Reader qemu(f.path("dongle"));
  f.start();
  ck_assert(f.pages->holds("dongle", 7));
  ck_assert(!f.exists("idle"));  // its end was under way
  f.grant(7, 5000);
  ck_assert_int_eq(qemu.look(), 0);  // the same file
  ck_assert_uint_eq(qemu.slot.deadline_ns, 5000);
  f.pages->keep([](const std::string& device, std::uint64_t token) { return device == "dongle" && token == 7; });
  ck_assert(f.pages->holds("dongle", 7));
  f.pages->keep([](const std::string& /*device*/, std::uint64_t token) { return token == 8; });
  ck_assert_int_eq(qemu.look(), -ESTALE);
  ck_assert_uint_eq(f.pages->count(), 0);
}
END_TEST

// What an earlier daemon, or somebody else, left under names that could be pages.
START_TEST(what_is_no_page_is_no_lease) {
  Fixture f;
  const auto put = [&](const std::string& name) {
    const UniqueFd fd(open(f.directory.path("pages/" + name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ck_assert_int_eq(write(fd.get(), "garbage", 7), 7);
  };
  const std::string damaged = std::string("redir-") + kGuest + "-dongle";
  put(damaged);
  put("usb-001-004");
  put("redir-");
  put(std::string("redir-") + kGuest);
  put(std::string("redir-") + kGuest + "-Bad.Name");
  Reader qemu(f.path("dongle"));
  ck_assert_int_eq(qemu.look(), -EBADMSG);
  f.start();
  ck_assert_uint_eq(f.pages->count(), 0);
  ck_assert_int_eq(qemu.look(), -ESTALE);
  ck_assert(!f.exists("dongle"));
  struct stat info {};
  ck_assert_int_eq(stat(f.directory.path("pages/usb-001-004").c_str(), &info), 0);  // not ours to judge
  f.grant(7, 1000);
  ck_assert(f.pages->holds("dongle", 7));
}
END_TEST

START_TEST(a_page_that_cannot_be_written_is_told_and_grants_nothing) {
  Fixture f;
  ck_assert_int_eq(rmdir(f.directory.path("pages").c_str()), 0);
  const UniqueFd in_the_way(open(f.directory.path("pages").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  ck_assert(static_cast<bool>(in_the_way));
  f.grant(7, 1000);
  ck_assert(!f.pages->holds("dongle", 7));
  ck_assert_msg(f.pages->trouble().find("pages") != std::string::npos, "%s", f.pages->trouble().c_str());
  ck_assert_int_eq(f.changes, 1);
  f.grant(7, 1000);
  ck_assert_int_eq(f.changes, 1);  // the same trouble
  ck_assert_int_eq(unlink(f.directory.path("pages").c_str()), 0);
  f.grant(7, 2000);
  ck_assert(f.pages->holds("dongle", 7));
  expect_text(f.pages->trouble(), "");
  ck_assert_int_eq(f.changes, 2);
  f.pages->grant({"dongle", 8, "no uuid", kNonce, 1000});
  ck_assert(!f.pages->holds("dongle", 8));
  ck_assert_int_eq(f.changes, 3);
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "lease pages",
      {a_grant_is_what_qemu_reads, renewals_bindings_and_the_end_reach_the_reader_in_place,
       a_new_token_ends_what_was_before, the_next_daemon_goes_on, what_is_no_page_is_no_lease,
       a_page_that_cannot_be_written_is_told_and_grants_nothing},
      60);
}
