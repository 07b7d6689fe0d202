// What a home remembers: rules of the floors, durability of what was confirmed, refusal of what is damaged.
#include <fcntl.h>
#include <glib.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>
#include <optional>
#include <sstream>

#include "common/boottime.h"
#include "daemon/host/home_codec.h"
#include "daemon/host/home_file.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

using test::expect_code;
using test::run_until;
using test::TemporaryDirectory;

constexpr const char* kBoot = "b0075e8c-0000-4000-8000-000000000001";

std::unique_ptr<HomeFile> open_home(const TemporaryDirectory& directory) {
  auto home = HomeFile::open(directory.path("home"), "host1");
  ck_assert_msg(home.has_value(), "%s", home ? "" : home.error().message.c_str());
  return std::move(*home);
}

// A result that is still to come.
template <typename T>
struct Answer {
  std::shared_ptr<std::optional<Result<T>>> cell = std::make_shared<std::optional<Result<T>>>();
  HomeFile::Done<T> done() {
    return [cell = cell](Result<T> result) {
      ck_assert(!cell->has_value());
      *cell = std::move(result);
    };
  }
  const Result<T>& wait() {
    ck_assert(run_until([&] { return cell->has_value(); }));
    return **cell;
  }
};

void supply(HomeFile& home, std::vector<HomeFile::SuppliedFloor> floors) {
  Answer<void> answer;
  home.supply_floors(std::move(floors), answer.done());
  ck_assert(answer.wait().has_value());
}

Result<void> arm(HomeFile& home, const std::string& device, std::uint64_t token, std::uint64_t instance = 1) {
  Answer<void> answer;
  home.record_armed(device, token, instance, kBoot, answer.done());
  return answer.wait();
}

Result<void> fence(HomeFile& home, const std::string& device, std::uint64_t token) {
  Answer<void> answer;
  home.record_fenced(device, token, answer.done());
  return answer.wait();
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

void expect_refused(const TemporaryDirectory& directory, const char* part) {
  const auto home = HomeFile::open(directory.path("home"), "host1");
  ck_assert_msg(!home, "accepted, should say \"%s\"", part);
  expect_code(home.error(), ErrorCode::kRefused, part);
}

START_TEST(new_disk_arms_nothing) {
  const TemporaryDirectory directory;
  {
    const auto home = open_home(directory);
    ck_assert(!home->has_floors());
    expect_code(home->may_arm("dongle", 1).error(), ErrorCode::kRefused, "lost its floors");
    expect_code(arm(*home, "dongle", 1).error(), ErrorCode::kRefused, "lost its floors");
    // Numbers and fences may be written before the floors are supplied; that does not make them complete.
    ck_assert(fence(*home, "dongle", 4).has_value());
    ck_assert(!home->has_floors());
  }
  const auto home = open_home(directory);
  ck_assert(!home->has_floors());
  supply(*home, {{"dongle", 3}, {"hsm", 9}});
  ck_assert(home->has_floors());
  ck_assert_uint_eq(home->floor("dongle").fenced(), 4);  // never lowered
  ck_assert_uint_eq(home->floor("hsm").fenced(), 9);
  ck_assert_uint_eq(home->floors().size(), 2);
}
END_TEST

START_TEST(rules_of_arming) {
  const TemporaryDirectory directory;
  const auto home = open_home(directory);
  supply(*home, {{"dongle", 10}});
  expect_code(home->may_arm("dongle", 10).error(), ErrorCode::kRefused, "fenced");
  ck_assert(home->may_arm("dongle", 11).has_value());
  ck_assert(home->may_arm("other", 1).has_value());
  expect_code(home->may_arm("other", 0).error(), ErrorCode::kRefused, "fenced");
  ck_assert(arm(*home, "dongle", 20).has_value());
  expect_code(home->may_arm("dongle", 19).error(), ErrorCode::kRefused, "token 20 was armed");
  expect_code(arm(*home, "dongle", 19).error(), ErrorCode::kRefused, "token 20 was armed");
  ck_assert(arm(*home, "dongle", 20).has_value());  // the same grant again
  ck_assert(fence(*home, "dongle", 20).has_value());
  expect_code(arm(*home, "dongle", 20).error(), ErrorCode::kRefused, "fenced");
  ck_assert(fence(*home, "dongle", 5).has_value());
  ck_assert_uint_eq(home->floor("dongle").fenced(), 20);
  ck_assert_uint_eq(home->floor("dongle").armed(), 20);
  ck_assert(arm(*home, "dongle", 21).has_value());
}
END_TEST

START_TEST(a_fence_under_way_counts) {
  const TemporaryDirectory directory;
  const auto home = open_home(directory);
  supply(*home, {});
  Answer<void> armed;
  Answer<void> fenced;
  Answer<void> again;
  home->record_armed("dongle", 5, 1, kBoot, armed.done());
  home->record_fenced("dongle", 5, fenced.done());
  home->record_armed("dongle", 5, 1, kBoot, again.done());
  ck_assert(!home->may_arm("dongle", 5).has_value());
  ck_assert_uint_eq(home->floor("dongle").fenced(), 0);  // not on disk yet
  ck_assert(armed.wait().has_value());
  ck_assert(fenced.wait().has_value());
  ck_assert(!again.wait().has_value());
}
END_TEST

START_TEST(instances_grow) {
  const TemporaryDirectory directory;
  std::uint64_t first = 0;
  {
    const auto home = open_home(directory);
    Answer<std::uint64_t> one;
    Answer<std::uint64_t> two;
    home->next_instance("dongle", kBoot, "", one.done());
    home->next_instance("hsm", kBoot, "", two.done());
    first = *one.wait();
    ck_assert_uint_eq(*two.wait(), first + 1);
    ck_assert_uint_eq(home->floor("dongle").instance(), first);
    const home::Floor floor = home->floor("dongle");
    test::expect_text(floor.boot_id(), kBoot);
    supply(*home, {});
    expect_code(arm(*home, "hsm", 1, first).error(), ErrorCode::kRefused, "earlier instance");
    ck_assert(arm(*home, "hsm", 1, first + 1).has_value());
  }
  {
    const auto home = open_home(directory);
    Answer<std::uint64_t> three;
    home->next_instance("dongle", kBoot, "", three.done());
    ck_assert_uint_eq(*three.wait(), first + 2);
  }
  // A file that was lost does not bring a number of this boot back, as long as a millisecond passes for each.
  ck_assert_int_eq(unlink(directory.path("home").c_str()), 0);
  const std::uint64_t ms_now = boottime_now_ns() / 1'000'000;
  const auto home = open_home(directory);
  Answer<std::uint64_t> after;
  home->next_instance("dongle", kBoot, "", after.done());
  ck_assert_uint_gt(*after.wait(), ms_now);
}
END_TEST

// Else a file that is lost in a later boot, and begins with that boot's milliseconds, would stay below them.
START_TEST(each_boot_has_numbers_of_its_own) {
  const TemporaryDirectory directory;
  const auto home = open_home(directory);
  supply(*home, {});
  const std::uint64_t ahead = boottime_now_ns();  // far above the milliseconds
  Answer<void> armed;
  home->record_armed("dongle", 1, ahead, "an earlier boot", armed.done());
  ck_assert(armed.wait().has_value());
  Answer<std::uint64_t> now;
  home->next_instance("dongle", kBoot, "", now.done());
  ck_assert_uint_lt(*now.wait(), ahead);
}
END_TEST

START_TEST(bad_input_is_not_written) {
  const TemporaryDirectory directory;
  const auto home = open_home(directory);
  supply(*home, {});
  expect_code(fence(*home, "Bad Name", 1).error(), ErrorCode::kBadInput, "device name");
  Answer<void> boot;
  home->record_armed("dongle", 1, 1, "", boot.done());
  expect_code(boot.wait().error(), ErrorCode::kBadInput, "boot id");
  Answer<void> supplied;
  home->supply_floors({{"fine", 7}, {"../x", 7}}, supplied.done());
  expect_code(supplied.wait().error(), ErrorCode::kBadInput, "device name");
  ck_assert_uint_eq(home->floors().size(), 0);
  std::vector<HomeFile::SuppliedFloor> most;
  for (std::size_t i = 0; i < kHomeFloorsMax; ++i) {
    // The greatest floors there can be still fit into the file's bound.
    most.push_back({std::string(40, 'd') + std::to_string(10'000 + i), ~0ULL});
  }
  supply(*home, most);
  expect_code(fence(*home, "one-more", 1).error(), ErrorCode::kRefused, "4096");
  ck_assert_uint_lt(read_file(directory.path("home")).size() + kHomeFloorsMax * 90, kHomeFileBytesMax);
}
END_TEST

START_TEST(waiting_updates_share_a_write) {
  const TemporaryDirectory directory;
  const auto home = open_home(directory);
  supply(*home, {});
  const std::uint64_t before = home->writes();
  std::string order;
  for (int i = 0; i < 100; ++i) {
    home->record_fenced("d" + std::to_string(i), 7, [&, i](Result<void> result) {
      ck_assert(result.has_value());
      // Refused ones keep their place too.
      if (i % 10 == 0) order += std::to_string(i / 10);
    });
    if (i == 55) home->record_armed("d0", 7, 1, kBoot, [&](Result<void> r) { order += r ? "!" : "x"; });
  }
  ck_assert(run_until([&] { return order.size() == 11; }));
  test::expect_text(order, "012345x6789");
  ck_assert_uint_eq(home->writes() - before, 1);
  // While a write is under way, all that comes waits for one more.
  int done = 0;
  home->record_fenced("d0", 8, [&](Result<void>) {
    ++done;
    for (int i = 0; i < 50; ++i) home->record_fenced("d" + std::to_string(i), 9, [&](Result<void>) { ++done; });
  });
  ck_assert(run_until([&] { return done == 51; }));
  ck_assert_uint_eq(home->writes() - before, 3);
  // What is on disk already costs no write.
  ck_assert(fence(*home, "d0", 9).has_value());
  ck_assert_uint_eq(home->writes() - before, 3);
}
END_TEST

START_TEST(the_rest_is_remembered) {
  const TemporaryDirectory directory;
  {
    const auto home = open_home(directory);
    supply(*home, {{"dongle", 3}, {"gone", 3}});
    Answer<void> cluster;
    home->set_cluster_id("c-1", cluster.done());
    ck_assert(cluster.wait().has_value());
    Answer<void> forgotten;
    home->forget("gone", forgotten.done());
    ck_assert(!home->may_arm("gone", 1).has_value());  // still on disk
    ck_assert(forgotten.wait().has_value());
    ck_assert(home->may_arm("gone", 1).has_value());
  }
  const auto home = open_home(directory);
  ck_assert_uint_eq(home->floors().size(), 1);
  test::expect_text(home->cluster_id(), "c-1");
  Answer<void> same;
  home->set_cluster_id("c-1", same.done());
  ck_assert(same.wait().has_value());
  Answer<void> other;
  home->set_cluster_id("c-2", other.done());
  expect_code(other.wait().error(), ErrorCode::kRefused, "belongs to cluster c-1");
  struct stat status {};
  ck_assert_int_eq(stat(directory.path("home").c_str(), &status), 0);
  ck_assert_uint_eq(status.st_mode & 07777, 0600);
}
END_TEST

START_TEST(one_daemon_a_directory) {
  const TemporaryDirectory directory;
  {
    const auto home = open_home(directory);
    expect_refused(directory, "in use by another usbleased");
  }
  open_home(directory);
}
END_TEST

START_TEST(damage_is_refused) {
  const TemporaryDirectory directory;
  const std::string path = directory.path("home");
  {
    const auto home = open_home(directory);
    supply(*home, {{"dongle", 300}});
  }
  const std::string good = read_file(path);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    write_file(path, flipped);
    expect_refused(directory, path.c_str());
    write_file(path, good.substr(0, at));
    expect_refused(directory, "damaged");
  }
  write_file(path, good + "x");
  expect_refused(directory, "checksum");
  write_file(path, std::string(kHomeFileBytesMax + 1, 'x'));
  expect_refused(directory, "too large");
  unlink(path.c_str());
  ck_assert_int_eq(mkdir(path.c_str(), 0700), 0);
  expect_refused(directory, "not a file");
  rmdir(path.c_str());
  ck_assert_int_eq(mkfifo(path.c_str(), 0600), 0);
  expect_refused(directory, "not a file");
  unlink(path.c_str());
  write_file(path, good);
  ck_assert_uint_eq(open_home(directory)->floor("dongle").fenced(), 300);
}
END_TEST

START_TEST(others_files_are_refused) {
  const TemporaryDirectory directory;
  const std::string path = directory.path("home");
  home::HomeFile home;
  home.set_format(kHomeFormat);
  home.set_host_id("host2");
  write_file(path, encode_home(home));
  expect_refused(directory, "belongs to host host2, this is host1");
  home.set_host_id("host1");
  home.set_format(kHomeFormat + 1);
  write_file(path, encode_home(home));
  expect_refused(directory, "newer usbleased");
  home.set_format(kHomeFormat);
  std::string newer = encode_home(home);
  newer[14] = '2';
  write_file(path, newer);
  expect_refused(directory, "newer usbleased");
  home.add_floors()->set_device("a");
  home.add_floors()->set_device("a");
  write_file(path, encode_home(home));
  expect_refused(directory, "there twice");
}
END_TEST

// In the child: fence upwards for ever, telling each confirmed token through the pipe.
[[noreturn]] void fence_for_ever(const std::string& path, int report, std::uint64_t from) {
  auto home = HomeFile::open(path, "host1");
  if (!home) _exit(1);
  std::uint64_t token = from;
  std::function<void()> next = [&] {
    ++token;
    (*home)->record_fenced("dongle", token, [&, token](Result<void> result) {
      if (!result || write(report, &token, sizeof token) != sizeof token) _exit(1);
      next();
    });
  };
  next();
  for (;;) g_main_context_iteration(nullptr, TRUE);
}

START_TEST(killed_at_any_instant) {
  const TemporaryDirectory directory;
  supply(*open_home(directory), {});
  std::uint64_t confirmed = 0;
  for (int round = 0; round < 60; ++round) {
    int report[2];
    ck_assert_int_eq(pipe2(report, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) fence_for_ever(directory.path("home"), report[1], confirmed);
    close(report[1]);
    // Some confirmations, then a random time into the writes that follow.
    std::uint64_t token = 0;
    for (int i = g_random_int_range(0, 4); i >= 0; --i) {
      ck_assert_int_eq(read(report[0], &token, sizeof token), sizeof token);
    }
    const timespec wait{0, g_random_int_range(0, 3'000'000)};
    nanosleep(&wait, nullptr);
    kill(child, SIGKILL);
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));
    while (read(report[0], &token, sizeof token) == sizeof token) continue;
    confirmed = token;
    close(report[0]);
    const auto home = open_home(directory);
    const std::uint64_t found = home->floor("dongle").fenced();
    ck_assert_msg(found == confirmed || found == confirmed + 1, "confirmed %llu, found %llu",
                  static_cast<unsigned long long>(confirmed), static_cast<unsigned long long>(found));
    confirmed = found;
  }
}
END_TEST

// In a mount namespace of its own, with a file system of 64 KiB.
int live_through_a_full_disk(const TemporaryDirectory& directory) {
  ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
  ck_assert_int_eq(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ck_assert_int_eq(mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=64k"), 0);
  const auto home = open_home(directory);
  supply(*home, {{"dongle", 1}});
  ck_assert(arm(*home, "dongle", 5).has_value());

  const UniqueFd filler(open(directory.path("filler").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const std::string block(4096, 'x');
  while (write(filler.get(), block.data(), block.size()) > 0) continue;

  Answer<void> fenced;
  Answer<void> armed_again;
  Answer<void> armed_next;
  home->record_fenced("dongle", 5, fenced.done());
  home->record_fenced("dongle", 1, armed_again.done());
  home->record_armed("hsm", 9, 1, kBoot, armed_next.done());
  expect_code(fenced.wait().error(), ErrorCode::kUnavailable, "make room");
  ck_assert(armed_again.wait().has_value());  // was on disk before
  expect_code(armed_next.wait().error(), ErrorCode::kUnavailable, "make room");
  ck_assert(!home->trouble().empty());
  // Nothing of it remains: the fence was not confirmed, so the token is as it was.
  ck_assert(home->may_arm("dongle", 5).has_value());
  ck_assert_uint_eq(home->floor("dongle").fenced(), 1);
  ck_assert_uint_eq(home->floors().size(), 1);
  ck_assert(arm(*home, "dongle", 5).has_value());  // the same grant: already on disk
  ck_assert_int_ne(access(directory.path("home.new").c_str(), F_OK), 0);

  ck_assert_int_eq(ftruncate(filler.get(), 0), 0);
  ck_assert(fence(*home, "dongle", 5).has_value());
  ck_assert(home->trouble().empty());
  ck_assert(!home->may_arm("dongle", 5).has_value());
  return 0;
}

START_TEST(full_disk) {
  const TemporaryDirectory directory;
  const pid_t child = fork();
  if (child == 0) _exit(live_through_a_full_disk(directory));
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
}
END_TEST

START_TEST(destroyed_while_writing) {
  const TemporaryDirectory directory;
  bool called = false;
  {
    const auto home = open_home(directory);
    home->supply_floors({{"dongle", 1}}, [&](Result<void>) { called = true; });
    test::run_posted();  // the write is under way
    home->record_fenced("dongle", 2, [&](Result<void>) { called = true; });
  }
  test::run_posted();
  ck_assert(!called);
  open_home(directory);
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite(
      "home_file",
      {new_disk_arms_nothing, rules_of_arming, a_fence_under_way_counts, instances_grow,
       each_boot_has_numbers_of_its_own, bad_input_is_not_written, waiting_updates_share_a_write,
       the_rest_is_remembered, one_daemon_a_directory, damage_is_refused, others_files_are_refused,
       killed_at_any_instant, full_disk, destroyed_while_writing},
      60);
}
