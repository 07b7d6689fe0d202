// Administration of etcd: members that come and go, how they are, snapshots; on real etcd with mutual TLS.
#include <sys/stat.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "tests/store/etcd_lab.h"

namespace usblease::store_test {
namespace {

using namespace store;

// Waits for the answer of a call of the client.
template <typename T, typename Call>
Result<T> answer(TestLoop& loop, Call call) {
  std::optional<Result<T>> result;
  call([&](Result<T> r) { result = std::move(r); });
  ck_assert_msg(loop.run_until([&] { return result.has_value(); }), "a call was never answered");
  return *result;
}

// As answer(), again while it is "not yet", within a bound; fails the test unless it is done.
template <typename T, typename Call>
T done(TestLoop& loop, Call call) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (;;) {
    Result<T> result = answer<T>(loop, call);
    if (result) return *result;
    const bool again = result.error().code == ErrorCode::kUnavailable && std::chrono::steady_clock::now() < end;
    ck_assert_msg(again, "not done: %s", result.error().message.c_str());
  }
}

std::unique_ptr<EtcdClient> open_client(const EtcdOptions& options, TestLoop& loop) {
  auto client = EtcdClient::open(options, loop.executor());
  ck_assert_msg(client.has_value(), "%s", client ? "" : client.error().message.c_str());
  return std::move(*client);
}

EtcdMembers list(EtcdClient& client, TestLoop& loop) {
  return done<EtcdMembers>(loop, [&](auto reply) { client.list(reply); });
}

std::uint64_t id_of(const EtcdMembers& members, const std::string& peer_url) {
  for (const EtcdMember& member : members.members) {
    if (!member.peer_urls.empty() && member.peer_urls[0] == peer_url) return member.id;
  }
  ck_abort_msg("no member with %s", peer_url.c_str());
  return 0;
}

START_TEST(members_come_and_go) {
  const Certificates certificates("members");
  EtcdLab lab({1, &certificates, {}});
  TestLoop loop;
  const auto client = open_client(lab.options(), loop);
  const EtcdMembers alone = list(*client, loop);
  ck_assert_uint_eq(alone.members.size(), 1);
  expect_text(alone.members[0].name, lab.name(0));
  ck_assert(!alone.members[0].learner);

  lab.add_member();
  const std::string url = lab.peer_url(1);
  const auto added = done<EtcdMembers>(loop, [&](auto reply) { client->add_learner({url}, reply); });
  ck_assert_uint_eq(added.members.size(), 2);
  const std::uint64_t id = id_of(added, url);
  const auto twice = answer<EtcdMembers>(loop, [&](auto reply) { client->add_learner({url}, reply); });
  ck_assert(!twice && twice.error().code == ErrorCode::kRefused);

  lab.start_new_learner(lab.name(0) + "=" + lab.peer_url(0) + "," + lab.name(1) + "=" + url);
  const auto status = done<EtcdStatus>(loop, [&](auto reply) { client->status(lab.address(1), reply); });
  ck_assert(status.member_id == id && status.etcd_cluster_id == alone.etcd_cluster_id);
  ck_assert(!status.version.empty());
  const auto promoted = done<EtcdMembers>(loop, [&](auto reply) { client->promote(id, reply); });
  for (const EtcdMember& member : promoted.members) ck_assert(!member.learner);

  const auto again = answer<EtcdMembers>(loop, [&](auto reply) { client->promote(id, reply); });
  ck_assert(!again && again.error().code == ErrorCode::kRefused);
  const auto nobody = answer<EtcdMembers>(loop, [&](auto reply) { client->promote(4711, reply); });
  ck_assert(!nobody && nobody.error().code == ErrorCode::kNotFound);

  ck_assert(client->set_endpoints({lab.address(0), lab.address(1)}).has_value());
  ck_assert(!client->set_endpoints({"nonsense"}).has_value());
  done<EtcdMembers>(loop, [&](auto reply) { client->remove(id, reply); });
  ck_assert_uint_eq(list(*client, loop).members.size(), 1);
}
END_TEST

START_TEST(leader_moves) {
  const Certificates certificates("leader");
  EtcdLab lab({3, &certificates, {}});
  TestLoop loop;
  const auto client = open_client(lab.options(), loop);
  list(*client, loop);
  const auto status_of = [&](int member) {
    return done<EtcdStatus>(loop, [&](auto reply) { client->status(lab.address(member), reply); });
  };
  int leader = 0;
  while (status_of(leader).leader_id != status_of(leader).member_id) leader = (leader + 1) % 3;
  const int other = (leader + 1) % 3;
  const std::uint64_t other_id = status_of(other).member_id;
  const auto refused =
      answer<void>(loop, [&](auto reply) { client->move_leader(lab.address(other), other_id, reply); });
  ck_assert(!refused && refused.error().code == ErrorCode::kRefused);
  ck_assert(answer<void>(loop, [&](auto reply) { client->move_leader(lab.address(leader), other_id, reply); }));
  ck_assert_uint_eq(status_of(other).leader_id, other_id);
  ck_assert(answer<void>(loop, [&](auto reply) { client->defragment(lab.address(other), reply); }));
}
END_TEST

START_TEST(snapshots_are_whole) {
  EtcdLab lab({});
  TestLoop loop;
  const TempDir dir(true);
  const EtcdOptions options = lab.options();
  auto store = open_etcd_store(options, loop.executor());
  ck_assert(store.has_value());
  ck_assert(commit(**store, loop, {{}, {put("k", std::string(50'000, 'v'))}}).outcome == Outcome::kDone);
  const auto client = open_client(options, loop);
  const std::string path = dir.file("snapshot.db");
  const auto taken =
      answer<EtcdSnapshot>(loop, [&](auto reply) { client->snapshot(options.endpoints[0], path, reply); });
  ck_assert_msg(taken.has_value(), "%s", taken ? "" : taken.error().message.c_str());
  struct stat file {};
  ck_assert(::stat(path.c_str(), &file) == 0);
  ck_assert_uint_eq(static_cast<std::uint64_t>(file.st_size), taken->bytes);
  ck_assert_uint_eq(file.st_mode & 0777, 0600);
  const std::string restore = "ETCDCTL_API=3 etcdctl snapshot restore " + path + " --data-dir=" + dir.file("restored") +
                              " >" + dir.file("log") + " 2>&1";
  ck_assert_msg(std::system(restore.c_str()) == 0, "%s", read_file(dir.file("log")).c_str());

  // Nothing is written over.
  const auto again =
      answer<EtcdSnapshot>(loop, [&](auto reply) { client->snapshot(options.endpoints[0], path, reply); });
  ck_assert(!again && again.error().message.find(path) != std::string::npos);
  ck_assert(::stat(path.c_str(), &file) == 0);

  // A member that goes away leaves no half of a file.
  lab.kill(0);
  const std::string half = dir.file("half.db");
  const auto cut = answer<EtcdSnapshot>(loop, [&](auto reply) { client->snapshot(options.endpoints[0], half, reply); });
  ck_assert(!cut && cut.error().code == ErrorCode::kUnavailable);
  ck_assert(::stat(half.c_str(), &file) != 0);
}
END_TEST

START_TEST(versions_that_are_not_used) {
  for (const char* good : {"3.4.23", "3.5.16", "3.4.0", "3.10.1-rc.1"}) {
    const std::string why = etcd_version_problem(good);
    ck_assert_msg(why.empty(), "%s: %s", good, why.c_str());
  }
  for (const char* bad : {"3.3.25", "2.3.8", "4.0.0", "0.0.1"}) {
    const std::string why = etcd_version_problem(bad);
    ck_assert_msg(why.find(std::string("etcd ") + bad + "; usblease needs 3.4") != std::string::npos, "%s",
                  why.c_str());
  }
  for (const char* unknown : {"", "latest", "3", "x.y.z"}) {
    ck_assert(etcd_version_problem(unknown).find("none of etcd's") != std::string::npos);
  }
}
END_TEST

START_TEST(nobody_there) {
  TestLoop loop;
  EtcdOptions options;
  options.endpoints = {"127.0.0.1:" + std::to_string(free_port())};
  options.call_timeout_ms = 500;
  const auto client = open_client(options, loop);
  const auto begin = std::chrono::steady_clock::now();
  const auto listed = answer<EtcdMembers>(loop, [&](auto reply) { client->list(reply); });
  ck_assert(!listed && listed.error().code == ErrorCode::kUnavailable);
  ck_assert(listed.error().message.find(options.endpoints[0]) != std::string::npos);
  ck_assert(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  for (const char* bad :
       {"", ":1", "host", "host:", "host:0", "host:65536", "host:1x", "a b:1", "::1:2379", "[host]:1"}) {
    const auto status = answer<EtcdStatus>(loop, [&](auto reply) { client->status(bad, reply); });
    ck_assert_msg(!status && status.error().code == ErrorCode::kBadInput, "\"%s\" was taken", bad);
    options.endpoints = {bad};
    ck_assert(!EtcdClient::open(options, loop.executor()).has_value());
  }
}
END_TEST

}  // namespace
}  // namespace usblease::store_test

int main() {
  using namespace usblease::store_test;
  Suite* const suite = suite_create("etcd-client");
  TCase* const tcase = tcase_create("etcd-client");
  tcase_set_timeout(tcase, 90);
  for (const TTest* test :
       {members_come_and_go, leader_moves, snapshots_are_whole, versions_that_are_not_used, nobody_there}) {
    tcase_add_test(tcase, test);
  }
  suite_add_tcase(suite, tcase);
  return run_suite(suite);
}
