// Who is asking and what they may, with real processes of other users. Needs root, as the daemon does.
#include <grp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "common/boottime.h"
#include "common/client.h"
#include "common/unix_socket.h"
#include "tests/unit/api/fixture.h"

using namespace usblease;
using namespace usblease::test;

namespace {

constexpr uid_t kNobody = 65534;
constexpr gid_t kNogroup = 65534;
constexpr uid_t kUnknownUser = 61'234;  // in no user database
// A group of every Debian system that nobody is in.
constexpr const char* kGroup = "games";

gid_t group_id() {
  const group* const found = getgrnam(kGroup);
  ck_assert_ptr_nonnull(found);
  return found->gr_gid;
}

bool become(uid_t uid, gid_t gid, const std::vector<gid_t>& supplementary) {
  return setgroups(supplementary.size(), supplementary.data()) == 0 && setgid(gid) == 0 && setuid(uid) == 0;
}

// In the child: exit status 100 + the code of the answer to one request, 1 when it came to nothing.
int ask(const std::string& path, const char* expected_words = "") {
  const std::uint64_t deadline_ns = boottime_now_ns() + 5'000'000'000;
  auto client = Client::connect(path, deadline_ns);
  if (!client) return 1;
  api::ClientFrame frame;
  frame.set_id(1);
  frame.mutable_hello()->set_version(kApiVersion);
  if (!client->send(frame.SerializeAsString(), deadline_ns)) return 1;
  frame.set_id(2);
  frame.mutable_list_devices();
  if (!client->send(frame.SerializeAsString(), deadline_ns)) return 1;
  for (;;) {
    const auto payload = client->receive(deadline_ns);
    api::ServerFrame answer;
    if (!payload || !answer.ParseFromString(*payload)) return 1;
    if (answer.status().message().find(expected_words) == std::string::npos && answer.id() == 2) return 2;
    if (answer.id() != 1) return 100 + static_cast<int>(answer.status().code());
  }
}

struct Expectation {
  bool may_act;
  bool may_read;
};

// The handler says CODE_OK to whoever may act, CODE_QUEUED to whoever may only read.
api::Handler level_handler() {
  return [](const api::Caller& caller, const api::ClientFrame& /*frame*/, const api::Responder& r) {
    r.fail(caller.may_act ? command::CODE_OK : command::CODE_QUEUED, "");
  };
}

constexpr int kActs = 100 + command::CODE_OK;
constexpr int kReads = 100 + command::CODE_QUEUED;
constexpr int kDenied = 100 + command::CODE_DENIED;

START_TEST(others_are_denied_and_told_which_group) {
  int handled = 0;
  ServerFixture fixture(
      {},
      [&](const api::Caller& /*caller*/, const api::ClientFrame& /*frame*/, const api::Responder& /*r*/) { ++handled; },
      {kGroup, false});
  ck_assert_int_eq(in_child([&] {
                     return become(kNobody, kNogroup, {}) ? ask(fixture.path(), "members of the group \"games\"") : 1;
                   }),
                   kDenied);
  ck_assert_int_eq(handled, 0);
}
END_TEST

START_TEST(without_a_group_only_root_acts) {
  ServerFixture fixture({}, level_handler(), {"", false});
  ck_assert_int_eq(in_child([&] { return become(kNobody, kNogroup, {}) ? ask(fixture.path(), "only root may") : 1; }),
                   kDenied);
  ck_assert_int_eq(in_child([&] { return ask(fixture.path()); }), kActs);
}
END_TEST

START_TEST(a_group_that_does_not_exist_lets_nobody_in) {
  ServerFixture fixture({}, level_handler(), {"no-such-group-here", false});
  ck_assert_int_eq(in_child([&] { return become(kNobody, kNogroup, {}) ? ask(fixture.path()) : 1; }), kDenied);
  ck_assert_int_eq(in_child([&] { return become(0, kNogroup, {}) ? ask(fixture.path()) : 1; }), kActs);
}
END_TEST

START_TEST(everybody_may_read_if_so_configured) {
  ServerFixture fixture({}, level_handler(), {kGroup, true});
  ck_assert_int_eq(in_child([&] { return become(kNobody, kNogroup, {}) ? ask(fixture.path()) : 1; }), kReads);
}
END_TEST

START_TEST(the_group_acts) {
  const gid_t gid = group_id();
  ServerFixture fixture({}, level_handler(), {kGroup, false});
  // The peer's own group, one of its supplementary groups among many, of a user that the database does not know.
  ck_assert_int_eq(in_child([&] { return become(kUnknownUser, gid, {}) ? ask(fixture.path()) : 1; }), kActs);
  ck_assert_int_eq(in_child([&] { return become(kUnknownUser, kNogroup, {gid}) ? ask(fixture.path()) : 1; }), kActs);
  std::vector<gid_t> many;
  for (gid_t other = 70'000; other < 70'300; ++other) many.push_back(other);
  ck_assert_int_eq(in_child([&] { return become(kUnknownUser, kNogroup, many) ? ask(fixture.path()) : 1; }), kDenied);
  many.push_back(gid);
  ck_assert_int_eq(in_child([&] { return become(kUnknownUser, kNogroup, many) ? ask(fixture.path()) : 1; }), kActs);
}
END_TEST

// The user database says it, although the process has not logged in again since.
START_TEST(the_user_database_counts) {
  ServerFixture fixture({}, level_handler(), {"nogroup", false});  // the primary group of nobody
  ck_assert_int_eq(in_child([&] { return become(kNobody, 12'345, {}) ? ask(fixture.path()) : 1; }), kActs);
  ck_assert_int_eq(in_child([&] { return become(kUnknownUser, 12'345, {}) ? ask(fixture.path()) : 1; }), kDenied);
}
END_TEST

// Holds `count` connections open in a child of user `uid` until `body` has returned.
void with_connections(ServerFixture& fixture, uid_t uid, std::size_t count, std::size_t expected,
                      const std::function<void()>& body) {
  int ends[2] = {-1, -1};
  ck_assert_int_eq(pipe(ends), 0);
  const std::size_t before = fixture.server().connections();
  const pid_t child = fork();
  if (child < 0) ck_abort_msg("cannot fork");
  if (child == 0) {
    ::close(ends[1]);
    std::vector<UniqueFd> held;
    bool fine = become(uid, kNogroup, {});
    for (std::size_t i = 0; i < count && fine; ++i) {
      auto fd = connect_unix(fixture.path(), 5'000, SOCK_STREAM);
      fine = fd.has_value();
      if (fine) held.push_back(std::move(*fd));
    }
    char end = 0;
    _exit(read(ends[0], &end, 1) == 0 && fine ? 0 : 1);  // the parent closes its end
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  iterate_until([&] { return fixture.server().connections() == before + expected; });
  iterate_pending();
  body();
  writer.reset();
  iterate_until([&] { return fixture.server().connections() == before; });
}

START_TEST(one_user_cannot_take_all_connections) {
  api::Limits limits;
  limits.connections = 10;
  limits.connections_for_root = 2;
  limits.connections_per_user = 3;
  ServerFixture fixture(limits, level_handler(), {"", true});
  const auto ask_as = [&](uid_t uid) {
    return in_child([&] { return become(uid, kNogroup, {}) ? ask(fixture.path()) : 1; });
  };
  const auto refused_as = [&](uid_t uid) { return ask_as(uid) == 100 + command::CODE_UNAVAILABLE; };
  with_connections(fixture, kNobody, 3, 3, [&] {
    ck_assert(refused_as(kNobody));
    ck_assert_int_eq(ask_as(kUnknownUser), kReads);
    with_connections(fixture, kUnknownUser, 3, 3, [&] {
      // Two are left for users, then root alone gets in.
      with_connections(fixture, kUnknownUser + 1, 2, 2, [&] {
        ck_assert(refused_as(kUnknownUser + 1));
        ck_assert(refused_as(kUnknownUser + 2));
        ck_assert_int_eq(ask_as(0), kActs);
      });
    });
  });
  ck_assert_int_eq(ask_as(kNobody), kReads);
}
END_TEST

}  // namespace

int main() {
  if (getuid() != 0) return 77;  // skipped: becomes other users
  Suite* const suite = suite_create("api");
  TCase* const all = tcase_create("access");
  tcase_set_timeout(all, 20);
  tcase_add_test(all, others_are_denied_and_told_which_group);
  tcase_add_test(all, without_a_group_only_root_acts);
  tcase_add_test(all, a_group_that_does_not_exist_lets_nobody_in);
  tcase_add_test(all, everybody_may_read_if_so_configured);
  tcase_add_test(all, the_group_acts);
  tcase_add_test(all, the_user_database_counts);
  tcase_add_test(all, one_user_cannot_take_all_connections);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
