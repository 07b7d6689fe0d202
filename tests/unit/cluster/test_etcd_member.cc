// The store member against a real etcd on loopback: its start, a restart of its supervisor, its death, and what it says
// when it cannot run.
#include <arpa/inet.h>
#include <fcntl.h>
#include <glib.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "common/boottime.h"
#include "common/glib_ptr.h"
#include "common/machine_id.h"
#include "common/main_loop.h"
#include "daemon/cluster/etcd_member.h"
#include "tests/unit/cluster/identity_kit.h"

namespace {

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::test;

constexpr std::uint64_t kNsPerS = 1'000'000'000;

void iterate_until(const std::function<bool()>& done, std::uint64_t within_s = 30) {
  bool late = false;
  const auto limit = run_after(within_s * kNsPerS, [&] { late = true; });
  while (!done()) {
    ck_assert_msg(!late, "not within %d s", static_cast<int>(within_s));
    g_main_context_iteration(nullptr, TRUE);
  }
}

// A port that nobody listens at, held until it is let go.
struct Port {
  UniqueFd fd{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::uint16_t number = 0;
  Port() {
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof place;
    ck_assert_int_eq(bind(fd.get(), reinterpret_cast<sockaddr*>(&place), sizeof place), 0);
    ck_assert_int_eq(listen(fd.get(), 1), 0);
    ck_assert_int_eq(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&place), &size), 0);
    number = ntohs(place.sin_port);
  }
};

class Bench {
 public:
  Bench() : root_(std::filesystem::temp_directory_path() / ("usblease-etcd-" + std::to_string(getpid()))) {
    std::filesystem::create_directory(root_);
    ck_assert_ok(save_identity(root_ / "identity", kit.host("h1")));
    Port client;
    Port peer;
    options.directory = root_ / "etcd";
    options.identity_directory = root_ / "identity";
    options.boot_id = "boot-1";
    options.cluster_id = "c1";
    options.name = "h1";
    options.listen_address = "127.0.0.1";
    options.advertise_host = "127.0.0.1";
    options.client_port = client.number;
    options.peer_port = peer.number;
    options.heartbeat_ms = 50;
    options.election_ms = 300;
  }
  ~Bench() {
    if (member) {
      bool stopped = false;
      member->stop([&] { stopped = true; });
      iterate_until([&] { return stopped; });
    }
    std::filesystem::remove_all(root_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void create() {
    const std::string peer = "https://127.0.0.1:" + std::to_string(options.peer_port);
    ck_assert_ok(EtcdMember::create(options, {{{"h1", peer}}, false}));
  }
  // A new supervisor, as after a restart of the daemon.
  void supervise() {
    member = std::make_unique<EtcdMember>(options, [this](EtcdState state, const std::string& why) {
      last = state;
      said = why;
    });
  }
  void up() {
    create();
    supervise();
    ck_assert_ok(member->start());
    ck_assert_msg(last == EtcdState::kRunning, "%s", said.c_str());
    ck_assert_text_eq(served({"put", "k", "v1"}), "OK\n");
  }

  // What was put by up(). A member that has just started says "no leader" for a moment.
  void still_there() const { ck_assert_text_eq(served({"get", "k", "--print-value-only"}), "v1\n"); }

  [[nodiscard]] std::string served(const std::vector<std::string>& words) const {
    const std::uint64_t end_ns = boottime_now_ns() + 30 * kNsPerS;
    std::string out;
    while (out.empty() && boottime_now_ns() < end_ns) {
      // One that did not come up is started again by a timer.
      while (g_main_context_iteration(nullptr, FALSE) != FALSE) {
      }
      out = ctl(words);
    }
    return out;
  }

  // etcdctl's output; empty when it failed. It waits for the server itself.
  [[nodiscard]] std::string ctl(std::vector<std::string> words, const std::string& identity = "identity") const {
    const std::string at = root_ / identity;
    std::vector<std::string> argv = {"etcdctl", "--endpoints=https://" + member->local_endpoint(),
                                     "--cacert=" + at + "/ca.pem", "--dial-timeout=10s", "--command-timeout=10s"};
    if (identity == "identity" || std::filesystem::exists(at + "/host.key")) {
      argv.push_back("--cert=" + at + "/host.pem");
      argv.push_back("--key=" + at + "/host.key");
    }
    argv.insert(argv.end(), words.begin(), words.end());
    std::vector<char*> pointers;
    pointers.reserve(argv.size() + 1);
    for (std::string& word : argv) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    char* out = nullptr;
    int status = -1;
    char api[] = "ETCDCTL_API=3";
    char path[] = "PATH=/usr/bin:/bin";
    char* environment[] = {api, path, nullptr};
    g_spawn_sync(nullptr, pointers.data(), environment,
                 static_cast<GSpawnFlags>(G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL), nullptr, nullptr, &out,
                 nullptr, &status, nullptr);
    const GChars owner(out);
    return status == 0 && out != nullptr ? out : "";
  }

  [[nodiscard]] std::string root() const { return root_; }

  Kit kit;
  EtcdMemberOptions options;
  std::unique_ptr<EtcdMember> member;
  EtcdState last = EtcdState::kStopped;
  std::string said;

 private:
  std::filesystem::path root_;
};

START_TEST(it_outlives_its_supervisor) {
  Bench bench;
  bench.up();
  const auto first = bench.member->process();
  ck_assert(first.has_value());
  bench.member.reset();
  ck_assert(start_ticks_of(first->pid) == first->start_ticks);
  bench.supervise();
  ck_assert_ok(bench.member->start());
  ck_assert(bench.member->process() == first);
  ck_assert(bench.member->state() == EtcdState::kRunning);
  bench.still_there();
  // And the one that adopted it ends it.
  bool stopped = false;
  bench.member->stop([&] { stopped = true; });
  iterate_until([&] { return stopped; });
  ck_assert(!start_ticks_of(first->pid).has_value());
  ck_assert(bench.last == EtcdState::kStopped);
}
END_TEST

START_TEST(it_is_started_again_when_it_dies) {
  Bench bench;
  bench.up();
  const auto first = *bench.member->process();
  ck_assert_int_eq(kill(first.pid, SIGKILL), 0);
  iterate_until([&] { return bench.last == EtcdState::kWaiting; });
  iterate_until([&] { return bench.last == EtcdState::kRunning; });
  ck_assert(!(*bench.member->process() == first));
  bench.still_there();
}
END_TEST

// Also while no supervisor was there to see it.
START_TEST(it_is_started_again_when_it_died_unseen) {
  Bench bench;
  bench.up();
  const auto first = *bench.member->process();
  bench.member.reset();
  ck_assert_int_eq(kill(first.pid, SIGKILL), 0);
  while (start_ticks_of(first.pid)) usleep(1'000);
  bench.supervise();
  ck_assert_ok(bench.member->start());
  ck_assert(!(*bench.member->process() == first));
  bench.still_there();
}
END_TEST

START_TEST(a_port_that_is_taken) {
  Bench bench;
  bench.create();
  auto taken = std::make_unique<Port>();
  bench.options.peer_port = taken->number;
  bench.supervise();
  ck_assert_ok(bench.member->start());
  ck_assert(bench.last == EtcdState::kWaiting);
  ck_assert_msg(bench.said.find("port " + std::to_string(taken->number)) != std::string::npos, "%s",
                bench.said.c_str());
  ck_assert(bench.said.find("[cluster] listen=") != std::string::npos);
  taken.reset();
  iterate_until([&] { return bench.last == EtcdState::kRunning; });
}
END_TEST

START_TEST(the_data_of_another_cluster) {
  Bench bench;
  bench.create();
  ck_assert(EtcdMember::exists(bench.options.directory));
  ck_assert_fails(EtcdMember::create(bench.options, {{{"h1", "https://x:1"}}, false}), ErrorCode::kRefused, "already");
  bench.options.cluster_id = "c2";
  bench.supervise();
  ck_assert_fails(bench.member->start(), ErrorCode::kRefused, "of the cluster c1");
  bench.member.reset();
  ck_assert_ok(EtcdMember::destroy(bench.options.directory));
  ck_assert(!EtcdMember::exists(bench.options.directory));
}
END_TEST

START_TEST(a_copy_on_another_machine) {
  Bench bench;
  bench.create();
  const std::string path = bench.options.directory + "/member";
  std::ifstream in(path);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  const std::string line = "machine=" + machine_uuid();
  ck_assert_msg(!machine_uuid().empty() && text.find(line) != std::string::npos, "%s", text.c_str());
  text.replace(text.find(line), line.size(), "machine=11111111-2222-4333-8444-555555555555");
  std::ofstream(path) << text;
  bench.supervise();
  ck_assert_fails(bench.member->start(), ErrorCode::kRefused, "made on another machine");
}
END_TEST

START_TEST(no_etcd_is_installed) {
  Bench bench;
  bench.create();
  bench.options.etcd_path = "/usr/bin/no-such-etcd";
  bench.supervise();
  ck_assert_fails(bench.member->start(), ErrorCode::kNotFound, "install etcd-server");
}
END_TEST

START_TEST(corrupt_data) {
  Bench bench;
  bench.up();
  bool stopped = false;
  bench.member->stop([&] { stopped = true; });
  iterate_until([&] { return stopped; });
  for (const auto& entry : std::filesystem::recursive_directory_iterator(bench.options.directory + "/data")) {
    if (entry.path().extension() != ".wal") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(200);
    file << std::string(300, 'x');
  }
  bench.supervise();
  ck_assert_ok(bench.member->start());
  iterate_until([&] { return bench.last == EtcdState::kUnfit; });
  ck_assert_msg(bench.said.find("corrupt") != std::string::npos, "%s", bench.said.c_str());
  ck_assert(bench.said.find("usblease cluster remove h1") != std::string::npos);
}
END_TEST

START_TEST(only_hosts_of_the_cluster_are_served) {
  Bench bench;
  bench.up();
  // Trusts the right CA, and shows a certificate of another one of the same name.
  const Kit other("c1");
  Identity stranger = other.host("h1");
  ck_assert_ok(save_identity(bench.root() + "/stranger", stranger));
  std::filesystem::copy_file(bench.root() + "/identity/ca.pem", bench.root() + "/stranger/ca.pem",
                             std::filesystem::copy_options::overwrite_existing);
  ck_assert_text_eq(bench.ctl({"get", "k"}, "stranger"), "");
  // And none at all.
  std::filesystem::create_directory(bench.root() + "/nobody");
  std::filesystem::copy_file(bench.root() + "/identity/ca.pem", bench.root() + "/nobody/ca.pem");
  ck_assert_text_eq(bench.ctl({"get", "k"}, "nobody"), "");
  bench.still_there();
}
END_TEST

START_TEST(whose_process_it_is) {
  const TemporaryDirectory directory;
  const ProcessId self{getpid(), *start_ticks_of(getpid())};
  ck_assert_ok(save_process_id(directory.file("process"), "boot-1", self));
  ck_assert(load_process_id(directory.file("process"), "boot-1") == self);
  ck_assert(!load_process_id(directory.file("process"), "boot-2").has_value());
  ck_assert(!load_process_id(directory.file("absent"), "boot-1").has_value());
  ck_assert(!load_process_id(directory.write("garbage", "x y z"), "boot-1").has_value());
  ck_assert_ok(DetachedProcess::open(self, "/proc/self/exe"));
  ck_assert_fails(DetachedProcess::open({self.pid, self.start_ticks + 1}, "/proc/self/exe"), ErrorCode::kNotFound,
                  "not the one");
  ck_assert_fails(DetachedProcess::open(self, "/usr/bin/etcd"), ErrorCode::kNotFound, "not the one");
  ck_assert_fails(start_detached({"/no/such/program", {}, {}, directory.file("log")}), ErrorCode::kInternal,
                  "/no/such/program");
}
END_TEST

START_TEST(what_etcd_says) {
  ck_assert(explain_etcd_log("member 1 has been permanently removed from the cluster", "h1").find("removed from") !=
            std::string::npos);
  ck_assert(explain_etcd_log("listen tcp 127.0.0.1:1: bind: address already in use", "h1").find("port") !=
            std::string::npos);
  ck_assert_text_eq(explain_etcd_log("all is well", "h1"), "");
}
END_TEST

// What a failed test leaves behind: detached processes become children of this one.
void end_what_is_left() {
  for (;;) {
    std::ifstream children("/proc/self/task/" + std::to_string(getpid()) + "/children");
    pid_t child = 0;
    bool any = false;
    while (children >> child) {
      any = true;
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    if (!any) return;
  }
}

}  // namespace

int main() {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  Suite* suite = suite_create("etcd member");
  TCase* tcase = tcase_create("etcd member");
  tcase_set_timeout(tcase, 90);
  for (const TTest* test :
       {it_outlives_its_supervisor, it_is_started_again_when_it_dies, it_is_started_again_when_it_died_unseen,
        a_port_that_is_taken, the_data_of_another_cluster, a_copy_on_another_machine, no_etcd_is_installed,
        corrupt_data, only_hosts_of_the_cluster_are_served, whose_process_it_is, what_etcd_says})
    tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  const int result = run_suite(suite);
  end_what_is_left();
  return result;
}
