// The lease page: what a reader says of every file that can be there, and that half a write never lies.
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "common/boottime.h"
#include "common/fd.h"
#include "plugin/lease-page/lease_page_writer.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using lease_page::Grant;
using lease_page::Writer;

namespace {

Grant grant_of(std::uint64_t token, std::uint64_t deadline_ns = 1000) {
  Grant grant;
  grant.token = token;
  grant.deadline_ns = deadline_ns;
  grant.guest.fill(0x11);
  grant.start.fill(0x22);
  return grant;
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// 0 or -errno of opening and reading `path`.
int look(const std::string& path, UsbLeaseSlot* slot) {
  const int fd = usb_lease_open(path.c_str());
  if (fd < 0) return fd;
  const UniqueFd owner(fd);
  return usb_lease_read(fd, slot);
}

START_TEST(a_fresh_page_grants_nothing) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  UsbLeaseSlot slot{};
  ck_assert_int_eq(look(path, &slot), -ENOENT);
  const auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_int_eq(look(path, &slot), 0);
  ck_assert_int_eq(slot.state, USB_LEASE_FREE);
  ck_assert_uint_ne(slot.epoch, 0);
}
END_TEST

START_TEST(what_is_written_is_read) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_fails(writer->renew(5), ErrorCode::kRefused, "grants nothing");
  ck_assert_ok(writer->grant(grant_of(7, 1000)));
  UsbLeaseSlot slot{};
  const UniqueFd kept(usb_lease_open(path.c_str()));
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), 0);
  ck_assert_int_eq(slot.state, USB_LEASE_GRANTED);
  ck_assert_uint_eq(slot.token, 7);
  ck_assert_uint_eq(slot.deadline_ns, 1000);
  ck_assert_uint_eq(slot.guest[15], 0x11);
  ck_assert_uint_eq(slot.start[0], 0x22);

  ck_assert_ok(writer->renew(2000));
  ck_assert_fails(writer->renew(1999), ErrorCode::kRefused, "must not end earlier");
  ck_assert_ok(writer->bind(4711));
  ck_assert_ok(writer->bind(4711));
  ck_assert_fails(writer->bind(4712), ErrorCode::kRefused, "bound to process 4711");
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), 0);
  ck_assert_uint_eq(slot.deadline_ns, 2000);
  ck_assert_uint_eq(slot.pid, 4711);

  ck_assert_ok(writer->revoke());
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), 0);
  ck_assert_int_eq(slot.state, USB_LEASE_REVOKED);
  ck_assert_fails(writer->renew(3000), ErrorCode::kRefused, "grants nothing");
  ck_assert_fails(writer->grant(grant_of(7)), ErrorCode::kRefused, "has seen token 7");
  ck_assert_fails(writer->grant(grant_of(6)), ErrorCode::kRefused, "has seen token 7");
  Grant without_start = grant_of(8);
  without_start.start.fill(0);
  ck_assert_fails(writer->grant(without_start), ErrorCode::kBadInput, "nonce");
  ck_assert_ok(writer->grant(grant_of(8)));
  ck_assert_uint_eq(writer->now().pid, 0);

  ck_assert_ok(writer->remove());
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), -ESTALE);
}
END_TEST

START_TEST(the_next_writer_continues) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  UsbLeaseSlot slot{};
  UniqueFd kept;
  {
    auto first = Writer::open(path);
    ck_assert_ok(first);
    ck_assert_ok(first->grant(grant_of(7, 1000)));
    kept.reset(usb_lease_open(path.c_str()));
  }
  auto second = Writer::open(path);
  ck_assert_ok(second);
  ck_assert_uint_eq(second->now().token, 7);
  ck_assert_ok(second->renew(5000));
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), 0);
  ck_assert_uint_eq(slot.deadline_ns, 5000);
}
END_TEST

START_TEST(what_cannot_be_continued_is_replaced) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("page", "something else");
  UsbLeaseSlot slot{};
  const UniqueFd kept(usb_lease_open(path.c_str()));
  ck_assert(static_cast<bool>(kept));
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), -EBADMSG);
  ck_assert_ok(Writer::open(path));
  ck_assert_int_eq(usb_lease_read(kept.get(), &slot), -ESTALE);
  ck_assert_int_eq(look(path, &slot), 0);

  // What an earlier attempt left, and a symbolic link that leads elsewhere, harm nobody.
  const std::string elsewhere = directory.write("elsewhere", "precious");
  ck_assert_int_eq(symlink(elsewhere.c_str(), directory.file("link").c_str()), 0);
  ck_assert_int_eq(symlink(elsewhere.c_str(), directory.file("link.new").c_str()), 0);
  ck_assert_ok(Writer::open(directory.file("link")));
  ck_assert_text_eq(content(elsewhere), "precious");
  ck_assert_int_eq(look(directory.file("link"), &slot), 0);
}
END_TEST

// Every way in which the file can be no page. None blocks, none crashes, none grants.
START_TEST(files_that_are_no_page) {
  const test::TemporaryDirectory directory;
  UsbLeaseSlot slot{};
  ck_assert_int_eq(look(directory.write("empty", ""), &slot), -EBADMSG);
  ck_assert_int_eq(look(directory.write("zeros", std::string(USB_LEASE_PAGE_BYTES, '\0')), &slot), -EBADMSG);
  ck_assert_int_eq(look(directory.write("garbage", std::string(9999, 'x')), &slot), -EBADMSG);
  ck_assert_int_eq(mkfifo(directory.file("fifo").c_str(), 0600), 0);
  ck_assert_int_eq(look(directory.file("fifo"), &slot), -EINVAL);
  ck_assert_int_eq(look(directory.file("."), &slot), -EINVAL);
  ck_assert_int_eq(look("/dev/zero", &slot), -EINVAL);
  const std::string good = directory.file("good");
  ck_assert_ok(Writer::open(good));
  ck_assert_int_eq(symlink(good.c_str(), directory.file("link").c_str()), 0);
  ck_assert_int_eq(look(directory.file("link"), &slot), -ELOOP);

  // A huge file is read as little as a small one: what follows the page does not count.
  ck_assert_int_eq(truncate(good.c_str(), 1LL << 40), 0);
  ck_assert_int_eq(look(good, &slot), 0);
  ck_assert_int_eq(truncate(good.c_str(), USB_LEASE_PAGE_BYTES - 1), 0);
  ck_assert_int_eq(look(good, &slot), -EBADMSG);
}
END_TEST

// A writer that dies after any number of bytes of any of its writes leaves what was true before, or what is true now.
START_TEST(half_a_write_never_lies) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_ok(writer->grant(grant_of(1, 100)));
  for (int step = 0; step < 4; ++step) {
    const std::string before = content(path);
    UsbLeaseSlot was{};
    ck_assert(usb_lease_decode(before.data(), before.size(), &was));
    ck_assert_ok(writer->renew(200 + static_cast<std::uint64_t>(step)));
    const std::string after = content(path);
    const std::size_t begin = (writer->now().generation % 2) * USB_LEASE_SLOT_BYTES;
    for (std::size_t bytes = 0; bytes <= USB_LEASE_SLOT_BYTES; ++bytes) {
      std::string half = before;
      half.replace(begin, bytes, after, begin, bytes);
      UsbLeaseSlot now{};
      ck_assert_msg(usb_lease_decode(half.data(), half.size(), &now), "after %zu bytes", bytes);
      ck_assert(now.generation == was.generation || now.generation == writer->now().generation);
      ck_assert(now.deadline_ns == was.deadline_ns || now.deadline_ns == writer->now().deadline_ns);
      if (bytes == USB_LEASE_SLOT_BYTES) ck_assert_uint_eq(now.deadline_ns, writer->now().deadline_ns);
    }
  }
}
END_TEST

// After a revocation no slot grants any more: damage to one of them cannot bring the lease back.
START_TEST(a_revocation_is_in_both_slots) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_ok(writer->grant(grant_of(1, 100)));
  ck_assert_ok(writer->revoke());
  for (std::size_t index = 0; index < 2; ++index) {
    std::string damaged = content(path);
    damaged[index * USB_LEASE_SLOT_BYTES + 20] ^= 1;
    UsbLeaseSlot slot{};
    ck_assert(usb_lease_decode(damaged.data(), damaged.size(), &slot));
    ck_assert_int_eq(slot.state, USB_LEASE_REVOKED);
  }
}
END_TEST

START_TEST(every_flipped_bit_is_noticed) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_ok(writer->grant(grant_of(1, 100)));
  ck_assert_ok(writer->renew(200));
  const std::string good = content(path);
  const std::size_t newest = (writer->now().generation % 2) * USB_LEASE_SLOT_BYTES;
  for (std::size_t bit = 0; bit < USB_LEASE_SLOT_BYTES * 8; ++bit) {
    std::string damaged = good;
    damaged[newest + bit / 8] = static_cast<char>(damaged[newest + bit / 8] ^ (1 << (bit % 8)));
    UsbLeaseSlot slot{};
    ck_assert(usb_lease_decode(damaged.data(), damaged.size(), &slot));
    ck_assert_uint_eq(slot.deadline_ns, 100);
  }
}
END_TEST

START_TEST(slots_that_contradict_each_other_are_no_page) {
  const test::TemporaryDirectory directory;
  auto a = Writer::open(directory.file("a"));
  auto b = Writer::open(directory.file("b"));
  ck_assert_ok(a);
  ck_assert_ok(b);
  ck_assert_ok(a->grant(grant_of(1)));
  ck_assert_ok(b->grant(grant_of(1)));
  const std::string of_a = content(directory.file("a"));
  const std::string of_b = content(directory.file("b"));
  UsbLeaseSlot slot{};
  const std::string mixed = of_a.substr(0, USB_LEASE_SLOT_BYTES) + of_b.substr(USB_LEASE_SLOT_BYTES);
  ck_assert(!usb_lease_decode(mixed.data(), mixed.size(), &slot));
  const std::string swapped = of_a.substr(USB_LEASE_SLOT_BYTES) + of_a.substr(0, USB_LEASE_SLOT_BYTES);
  ck_assert(!usb_lease_decode(swapped.data(), swapped.size(), &slot));
}
END_TEST

// What QEMU waits for: each change is an inotify event of the file that it has open.
START_TEST(changes_wake_the_reader) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  const UniqueFd kept(usb_lease_open(path.c_str()));
  const UniqueFd events(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  const std::string by_descriptor = "/proc/self/fd/" + std::to_string(kept.get());
  ck_assert_int_ge(inotify_add_watch(events.get(), by_descriptor.c_str(), IN_MODIFY | IN_ATTRIB), 0);
  const auto seen = [&] {
    std::array<char, 4096> buffer{};
    const ssize_t got = read(events.get(), buffer.data(), buffer.size());
    std::uint32_t mask = 0;
    for (ssize_t at = 0; at < got; at += static_cast<ssize_t>(sizeof(inotify_event))) {
      inotify_event event{};
      std::memcpy(&event, buffer.data() + at, sizeof event);
      mask |= event.mask;
    }
    return mask;
  };
  ck_assert_uint_eq(seen(), 0);
  ck_assert_ok(writer->grant(grant_of(1)));
  ck_assert(seen() & IN_MODIFY);
  ck_assert_ok(writer->renew(5000));
  ck_assert(seen() & IN_MODIFY);
  ck_assert_ok(writer->revoke());
  ck_assert(seen() & IN_MODIFY);
  ck_assert_ok(writer->remove());
  ck_assert(seen() & IN_ATTRIB);
}
END_TEST

// A reader beside a writer at full speed sees deadlines that never go back, and never half a page.
START_TEST(reader_beside_a_writer) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("page");
  auto writer = Writer::open(path);
  ck_assert_ok(writer);
  ck_assert_ok(writer->grant(grant_of(1, 1)));
  constexpr std::uint64_t kLast = 50'000;
  const pid_t child = fork();
  if (child < 0) ck_abort_msg("cannot fork");
  if (child == 0) {
    for (std::uint64_t deadline_ns = 2; deadline_ns <= kLast; ++deadline_ns) {
      if (!writer->renew(deadline_ns)) _exit(1);
    }
    _exit(0);
  }
  const UniqueFd kept(usb_lease_open(path.c_str()));
  UsbLeaseSlot slot{};
  std::uint64_t last = 0;
  const std::uint64_t give_up_ns = boottime_now_ns() + 30'000'000'000;
  while (last < kLast) {
    ck_assert_int_eq(usb_lease_read(kept.get(), &slot), 0);
    ck_assert_uint_ge(slot.deadline_ns, last);
    last = slot.deadline_ns;
    ck_assert_uint_lt(boottime_now_ns(), give_up_ns);
  }
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
}
END_TEST

START_TEST(names) {
  ck_assert_text_eq(lease_page::usb_page_path("/run/usblease", 1, 4), "/run/usblease/pages/usb-001-004");
  const std::string uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
  ck_assert_text_eq(lease_page::redir_page_path("/r", uuid, "hsm-1"), "/r/pages/redir-" + uuid + "-hsm-1");
  const auto id = lease_page::id_from_uuid(uuid);
  ck_assert_ok(id);
  ck_assert_uint_eq((*id)[0], 0x6b);
  ck_assert_uint_eq((*id)[4], 0x9d);
  ck_assert_uint_eq((*id)[15], 0xc8);
  ck_assert_fails(lease_page::id_from_uuid("6ba7b810"), ErrorCode::kBadInput, "UUID");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("lease page");
  TCase* const cases = tcase_create("lease page");
  tcase_set_timeout(cases, 60);
  for (const TTest* test :
       {a_fresh_page_grants_nothing, what_is_written_is_read, the_next_writer_continues,
        what_cannot_be_continued_is_replaced, files_that_are_no_page, half_a_write_never_lies,
        a_revocation_is_in_both_slots, every_flipped_bit_is_noticed, slots_that_contradict_each_other_are_no_page,
        changes_wake_the_reader, reader_beside_a_writer, names}) {
    tcase_add_test(cases, test);
  }
  suite_add_tcase(suite, cases);
  return test::run_suite(suite);
}
