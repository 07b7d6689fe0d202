// The real relay and the real dongle, with Relays as the daemon uses it and a guest that the test plays.
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "common/boottime.h"
#include "common/sanitized.h"
#include "common/unix_socket.h"
#include "daemon/host/endpoint.h"
#include "daemon/host/relays.h"
#include "daemon/relay/invocation.h"
#include "tests/unit/relay/check_framework.h"
#include "tests/unit/relay/harness.h"
#include "tests/unit/relay/peer.h"

namespace {

using namespace usblease::test;
using usblease::boottime_now_ns;
using usblease::UniqueFd;
using usblease::host::RelayEvents;
using usblease::host::RelayOptions;
using usblease::host::Relays;
using usblease::host::RelayStart;
namespace relay = usblease::relay;

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kToken = 7;
constexpr uid_t kNobody = 65534;
const char* const kGuestUuid = "6a2f0d1c-9a53-4b4e-8f5e-0c6a6f1b2d3e";

// What the daemon was told, as one line an event.
struct Heard {
  std::vector<std::string> events;
  relay::Ended ended;
  relay::Hello hello;
  [[nodiscard]] bool has(const std::string& event) const {
    return std::find(events.begin(), events.end(), event) != events.end();
  }
};

RelayEvents listen_to(Heard* heard) {
  RelayEvents events;
  events.hello = [heard](const relay::Hello& hello) {
    heard->hello = hello;
    heard->events.emplace_back("hello");
  };
  events.connected = [heard](const std::string&, std::uint64_t) { heard->events.emplace_back("connected"); };
  events.device_seen = [heard](const std::string&, std::uint64_t, const relay::DeviceSeen& seen) {
    heard->events.push_back("device " + std::to_string(seen.vendor()) + ":" + std::to_string(seen.product()));
  };
  events.ended = [heard](const std::string&, std::uint64_t, const relay::Ended& ended) {
    heard->ended = ended;
    heard->events.emplace_back("ended");
  };
  events.fenced = [heard](const std::string&, std::uint64_t) { heard->events.emplace_back("fenced"); };
  events.lost = [heard](const std::string& device, std::uint64_t token) {
    heard->events.push_back("lost " + device + "." + std::to_string(token));
  };
  return events;
}

std::pair<UniqueFd, UniqueFd> make_pair() {
  std::array<int, 2> fds{};
  ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::vector<pid_t> children() {
  std::ifstream file("/proc/self/task/" + std::to_string(getpid()) + "/children");
  std::vector<pid_t> out;
  for (pid_t pid = 0; file >> pid;) out.push_back(pid);
  return out;
}

// A daemon, a relay, a dongle, a guest. The relay, which is nobody's child, becomes ours to reap
// (PR_SET_CHILD_SUBREAPER).
struct Rig {
  explicit Rig(const std::vector<std::string>& dongle_arguments = {}, bool with_dongle = true) {
    ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    if (with_dongle) dongle = std::make_unique<DongleProcess>(directory, dongle_arguments);
    start_daemon();
  }
  ~Rig() {
    guest.reset();
    relays.reset();
    dongle.reset();
    if (relay_pid > 0) kill(relay_pid, SIGKILL);
    if (relay_pid > 0) waitpid(relay_pid, nullptr, 0);
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  RelayOptions options() const {
    RelayOptions out;
    out.run_dir = directory.path();
    out.relay_path = USBLEASE_RELAY;
    out.uid = out.gid = kNobody;
    return out;
  }
  void start_daemon() {
    heard = Heard();
    relays = std::make_unique<Relays>(options(), listen_to(&heard));
  }
  void adopt() {
    bool done = false;
    relays->adopt([&done] { done = true; });
    wait_until("adopted", [&done] { return done; });
  }

  UniqueFd connect_to_dongle() {
    UniqueFd out;
    std::string problem;
    const auto call = usblease::host::connect_endpoint(dongle->address(), 5'000, [&](usblease::Result<UniqueFd> fd) {
      if (fd) {
        out = std::move(*fd);
      } else {
        problem = fd.error().message;
      }
    });
    wait_until("connected to the dongle", [&] { return out || !problem.empty(); });
    ck_assert_msg(problem.empty(), "%s", problem.c_str());
    return out;
  }

  void start_relay(std::uint64_t deadline_in_ms) { start_relay_with(connect_to_dongle(), deadline_in_ms); }

  void start_relay_with(UniqueFd endpoint, std::uint64_t deadline_in_ms) {
    auto [near, far] = make_pair();
    guest = std::make_unique<Peer>(std::move(far), Role::kGuest);
    deadline_ns = boottime_now_ns() + deadline_in_ms * kMs;
    RelayStart start;
    start.device = "dongle";
    start.token = kToken;
    start.guest_uuid = kGuestUuid;
    start.instance = 3;
    start.peer_pid = getpid();
    start.deadline_ns = deadline_ns;
    start.guest = std::move(near);
    start.endpoint = std::move(endpoint);
    const auto started = relays->spawn(std::move(start));
    ck_assert_msg(started.has_value(), "%s", started ? "" : started.error().message.c_str());
    find_relay();
  }

  // By its parent: us, once both forks are done.
  void find_relay() {
    wait_until("the relay runs", [this] {
      for (const pid_t pid : children()) {
        std::error_code error;
        const auto program = std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe", error);
        if (!error && program == std::filesystem::canonical(USBLEASE_RELAY)) relay_pid = pid;
      }
      return relay_pid > 0;
    });
  }

  // The guest's side, driven by polling: also when no main loop event comes.
  void pump_guest() {
    guest->flush();
    guest->receive();
  }
  void wait_guest(const char* what, const std::function<bool()>& so, std::uint32_t bound_ms = 10'000) {
    wait_until(
        what,
        [&] {
          pump_guest();
          return so();
        },
        bound_ms);
  }

  void wait_for_device() {
    wait_guest("the guest sees the device", [this] { return has_packet("device_connect"); });
  }
  bool has_packet(const std::string& type) const {
    return std::any_of(guest->received.begin(), guest->received.end(), [&](const Packet& p) { return p.type == type; });
  }

  void send_ping(std::uint64_t number) {
    const std::string line = "ping " + std::to_string(number) + "\n";
    usb_redir_bulk_packet_header out{0x02, 0, static_cast<std::uint16_t>(line.size()), 0, 0};
    std::string copy = line;
    usbredirparser_send_bulk_packet(guest->parser(), number * 2, &out, reinterpret_cast<std::uint8_t*>(copy.data()),
                                    static_cast<int>(copy.size()));
    usb_redir_bulk_packet_header in{0x82, 0, 512, 0, 0};
    usbredirparser_send_bulk_packet(guest->parser(), number * 2 + 1, &in, nullptr, 0);
  }
  bool has_pong(std::uint64_t number) const {
    return std::any_of(guest->received.begin(), guest->received.end(), [&](const Packet& p) {
      return p.data == "pong " + std::to_string(number) + " 0001\n" && p.id == number * 2 + 1;
    });
  }
  void ping(std::uint64_t number) {
    send_ping(number);
    wait_guest("a pong", [&] { return has_pong(number); });
  }

  void wait_heard(const std::string& event, std::uint32_t bound_ms = 10'000) {
    wait_until(
        event.c_str(), [&] { return heard.has(event); }, bound_ms);
  }
  int wait_exit() {
    int status = 0;
    wait_until("the relay exits", [&] { return waitpid(relay_pid, &status, WNOHANG) == relay_pid; });
    relay_pid = -1;
    return status;
  }
  std::string socket_path() const { return directory.path("relays/dongle.7"); }

  TempDir directory;
  std::unique_ptr<DongleProcess> dongle;
  Heard heard;
  std::unique_ptr<Relays> relays;
  std::unique_ptr<Peer> guest;
  pid_t relay_pid = -1;
  std::uint64_t deadline_ns = 0;
};

START_TEST(packets_flow) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  for (unsigned i = 0; i < 20; ++i) rig.ping(i);
  rig.wait_heard("device 4617:1");  // 1209:0001
  ck_assert(rig.heard.has("hello"));
  ck_assert(rig.heard.has("connected"));
  ck_assert_str_eq(rig.heard.hello.device().c_str(), "dongle");
  ck_assert_str_eq(rig.heard.hello.guest_uuid().c_str(), kGuestUuid);
  ck_assert_uint_eq(rig.heard.hello.instance(), 3);
  ck_assert_int_eq(rig.heard.hello.peer_pid(), getpid());
  ck_assert_uint_eq(rig.heard.hello.deadline_ns(), rig.deadline_ns);
  ck_assert(rig.relays->has("dongle", kToken));
  ck_assert(!rig.relays->has("dongle", kToken + 1));
  ck_assert_uint_eq(rig.relays->count(), 1);
}
END_TEST

// The relay reads the clock before each write, so every write that the dongle can see began before the deadline. A
// write may be interrupted between the clock and the kernel, and the dongle stamps a packet only when it has been
// scheduled: hence a slack for the last packet's stamp. After the slack there must be none at all, though the guest
// goes on trying.
START_TEST(nothing_reaches_the_device_after_the_deadline) {
  constexpr std::uint64_t kSlackNs = 100 * kMs;
  Rig rig;
  rig.start_relay(700);
  rig.wait_for_device();
  unsigned sent = 0;
  rig.wait_guest("the guest's stream ends", [&] {
    if (!rig.guest->end_of_stream() && usbredirparser_has_data_to_write(rig.guest->parser()) < 50)
      rig.send_ping(sent++);
    return rig.guest->end_of_stream();
  });
  const std::uint64_t guest_end_ns = boottime_now_ns();
  rig.wait_heard("fenced");
  ck_assert_uint_ge(guest_end_ns, rig.deadline_ns);
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_DEADLINE);
  ck_assert_uint_lt(rig.heard.ended.last_packet_boottime_ns(), rig.deadline_ns);
  ck_assert_uint_ge(rig.heard.ended.at_boottime_ns(), rig.deadline_ns);
  const auto log = rig.dongle->log();
  std::size_t packets = 0;
  for (const DongleEvent& entry : log) {
    if (entry.event != "packet") continue;
    ++packets;
    ck_assert_msg(entry.t_ns < rig.deadline_ns + kSlackNs, "a packet %llu us after the deadline",
                  static_cast<unsigned long long>((entry.t_ns - rig.deadline_ns) / 1000));
  }
  ck_assert_uint_gt(packets, 10);
  ck_assert_str_eq(log.back().event.c_str(), "end");
}
END_TEST

START_TEST(an_idle_stream_ends_at_the_deadline) {
  Rig rig;
  rig.start_relay(400);
  rig.wait_for_device();
  rig.wait_heard("ended");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_DEADLINE);
  const std::uint64_t late_ns = rig.heard.ended.at_boottime_ns() - rig.deadline_ns;
  ck_assert_uint_lt(late_ns, 500 * kMs);
  rig.wait_heard("fenced");
}
END_TEST

START_TEST(a_relay_stopped_over_its_deadline_lets_nothing_pass) {
  Rig rig;
  rig.start_relay(800);
  rig.wait_for_device();
  rig.ping(1);
  ck_assert_int_eq(kill(rig.relay_pid, SIGSTOP), 0);
  wait_until("the relay is stopped", [&] { return proc_status(rig.relay_pid, "State")->rfind("T", 0) == 0; });
  const std::size_t before = rig.dongle->count("packet");
  for (unsigned i = 2; i < 20; ++i) rig.send_ping(i);
  rig.pump_guest();                                                     // in the relay's socket before the deadline
  rig.relays->renew("dongle", kToken, rig.deadline_ns + 60'000 * kMs);  // arrives, but is read too late
  wait_until("the deadline", [&] { return boottime_now_ns() > rig.deadline_ns + 50 * kMs; });
  ck_assert_int_eq(kill(rig.relay_pid, SIGCONT), 0);
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_DEADLINE);
  ck_assert_uint_eq(rig.dongle->count("packet"), before);
}
END_TEST

START_TEST(renewals_keep_the_stream) {
  Rig rig;
  rig.start_relay(500);
  rig.wait_for_device();
  const std::uint64_t first_deadline_ns = rig.deadline_ns;
  unsigned number = 0;
  while (boottime_now_ns() < first_deadline_ns + 500 * kMs) {
    rig.deadline_ns = boottime_now_ns() + 500 * kMs;
    rig.relays->renew("dongle", kToken, rig.deadline_ns);
    rig.relays->renew("dongle", kToken + 1, rig.deadline_ns);  // there is none
    rig.ping(++number);
  }
  ck_assert(!rig.heard.has("ended"));
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_DEADLINE);
  ck_assert_uint_ge(rig.heard.ended.at_boottime_ns(), rig.deadline_ns);
}
END_TEST

START_TEST(revoke_fences) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays->revoke("dongle", kToken);
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_REVOKED);
  rig.wait_guest("the guest is cut off", [&] { return rig.guest->end_of_stream(); });
}
END_TEST

START_TEST(an_acknowledged_relay_exits) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays->acknowledge("dongle", kToken);  // of nothing: it must not exit
  rig.ping(1);
  rig.guest->close();
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_GUEST_CLOSED);
  rig.start_daemon();  // the fence was not written down by the first
  rig.adopt();
  rig.wait_heard("fenced");
  rig.relays->acknowledge("dongle", kToken);
  ck_assert_int_eq(rig.wait_exit(), 0);
  wait_until("the relay is forgotten", [&] { return rig.relays->count() == 0; });
  ck_assert(!std::filesystem::exists(rig.socket_path()));
  ck_assert(!rig.heard.has("lost dongle.7"));
}
END_TEST

START_TEST(the_deadline_holds_without_a_daemon) {
  Rig rig;
  rig.start_relay(600);
  rig.wait_for_device();
  rig.relays.reset();
  rig.ping(1);  // it serves on
  rig.wait_guest("the guest is cut off", [&] { return rig.guest->end_of_stream(); });
  ck_assert_uint_ge(boottime_now_ns(), rig.deadline_ns);
  wait_until("the dongle saw the end", [&] { return rig.dongle->count("end") == 1; });
  rig.start_daemon();
  rig.adopt();
  ck_assert(rig.heard.has("hello"));
  rig.wait_heard("fenced");
  const std::vector<std::string> want = {"hello", "connected", "device 4617:1", "ended", "fenced"};
  ck_assert(rig.heard.events == want);
  rig.relays->acknowledge("dongle", kToken);
  ck_assert_int_eq(rig.wait_exit(), 0);
}
END_TEST

START_TEST(a_new_daemon_renews_and_revokes) {
  Rig rig;
  rig.start_relay(1'000);
  rig.wait_for_device();
  rig.relays.reset();
  rig.start_daemon();
  rig.adopt();
  ck_assert_uint_eq(rig.heard.hello.deadline_ns(), rig.deadline_ns);
  rig.relays->renew("dongle", kToken, rig.deadline_ns + 60'000 * kMs);
  wait_until("the old deadline", [&] { return boottime_now_ns() > rig.deadline_ns + 20 * kMs; });
  rig.ping(1);
  rig.relays->revoke("dongle", kToken);
  rig.wait_heard("fenced");
}
END_TEST

START_TEST(a_killed_relay_is_lost) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  ck_assert_int_eq(kill(rig.relay_pid, SIGKILL), 0);
  rig.wait_heard("lost dongle.7");
  ck_assert(!rig.heard.has("fenced"));
  ck_assert_uint_eq(rig.relays->count(), 0);
  ck_assert(!std::filesystem::exists(rig.socket_path()));
  rig.wait_guest("the guest is cut off", [&] { return rig.guest->end_of_stream(); });
  rig.relays->renew("dongle", kToken, 1);
  rig.relays->revoke("dongle", kToken);
  rig.relays->acknowledge("dongle", kToken);
}
END_TEST

START_TEST(a_relay_killed_while_no_daemon_ran_is_lost) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays.reset();
  ck_assert_int_eq(kill(rig.relay_pid, SIGKILL), 0);
  (void)rig.wait_exit();
  ck_assert(std::filesystem::exists(rig.socket_path()));
  std::ofstream(rig.directory.path("relays/README")) << "not a relay";
  std::ofstream(rig.directory.path("relays/dongle.007")) << "not a canonical name";
  rig.start_daemon();
  rig.adopt();
  ck_assert(rig.heard.events == std::vector<std::string>{"lost dongle.7"});
  ck_assert(!std::filesystem::exists(rig.socket_path()));
  ck_assert(std::filesystem::exists(rig.directory.path("relays/README")));
}
END_TEST

START_TEST(a_stopped_relay_does_not_hold_up_a_new_daemon) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays.reset();
  ck_assert_int_eq(kill(rig.relay_pid, SIGSTOP), 0);
  rig.start_daemon();
  rig.adopt();  // ends by its own bound
  ck_assert(rig.heard.events.empty());
  ck_assert(rig.relays->has("dongle", kToken));
  ck_assert_int_eq(kill(rig.relay_pid, SIGCONT), 0);
  rig.wait_heard("hello");
}
END_TEST

START_TEST(adopting_nothing_is_done_at_once) {
  Rig rig({}, false);
  rig.adopt();
  ck_assert(rig.heard.events.empty());
}
END_TEST

START_TEST(a_relay_that_cannot_be_executed_is_lost) {
  Rig rig({}, false);
  RelayOptions options = rig.options();
  options.relay_path = rig.directory.path("no-such-program");
  Relays relays(options, listen_to(&rig.heard));
  auto [near, far] = make_pair();
  auto [endpoint_near, endpoint_far] = make_pair();
  RelayStart start;
  start.device = "dongle";
  start.token = kToken;
  start.guest_uuid = kGuestUuid;
  start.guest = std::move(near);
  start.endpoint = std::move(endpoint_near);
  ck_assert(relays.spawn(std::move(start)).has_value());
  ck_assert(rig.heard.events.empty());  // never inside the call
  rig.wait_heard("lost dongle.7");
  char byte = 0;
  ck_assert_int_eq(read(far.get(), &byte, 1), 0);
  ck_assert_int_eq(read(endpoint_far.get(), &byte, 1), 0);
}
END_TEST

START_TEST(one_relay_a_token) {
  Rig rig;
  rig.start_relay(60'000);
  RelayStart start;
  start.device = "dongle";
  start.token = kToken;
  const auto second = rig.relays->spawn(std::move(start));
  ck_assert(!second.has_value());
  ck_assert(second.error().code == usblease::ErrorCode::kRefused);
}
END_TEST

START_TEST(an_endpoint_that_never_closes_is_never_fenced) {
  Rig rig({"--misbehave", "never-close"});
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays->revoke("dongle", kToken);
  rig.wait_heard("ended");
  wait_until("the dongle ignores the end", [&] { return rig.dongle->count("eof") == 1; });
  run_for(500);
  ck_assert(!rig.heard.has("fenced"));
  ck_assert(rig.relays->has("dongle", kToken));
  rig.dongle->kill_and_reap();
  rig.wait_heard("fenced");
}
END_TEST

START_TEST(an_endpoint_that_dies) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.dongle->kill_and_reap();
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_ENDPOINT_CLOSED);
  rig.wait_guest("the guest is cut off", [&] { return rig.guest->end_of_stream(); });
}
END_TEST

START_TEST(endpoints_that_misbehave) {
  struct Case {
    const char* how;
    relay::Ending why;
    bool fenced;
  };
  const std::array<Case, 2> cases{
      {{"garbage", relay::ENDING_ENDPOINT_PROTOCOL, true}, {"close-mid-packet", relay::ENDING_ENDPOINT_CLOSED, true}}};
  for (const Case& one : cases) {
    Rig rig({"--misbehave", one.how});
    rig.start_relay(60'000);
    rig.guest->flush();
    rig.wait_heard("ended");
    ck_assert_int_eq(rig.heard.ended.why(), one.why);
    rig.wait_heard("fenced");
    ck_assert(!rig.heard.has("connected"));
  }
}
END_TEST

START_TEST(a_guest_that_sends_garbage) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.guest->send_raw(std::string(100, 'G'));
  rig.wait_heard("fenced");
  ck_assert_int_eq(rig.heard.ended.why(), relay::ENDING_GUEST_PROTOCOL);
}
END_TEST

// ---- the control connection, by hand ----

relay::ToDaemon receive_message(int fd) {
  pollfd ready{fd, POLLIN, 0};
  ck_assert_int_eq(poll(&ready, 1, 10'000), 1);
  std::array<char, relay::kControlMessageMax> buffer{};
  const ssize_t got = recv(fd, buffer.data(), buffer.size(), 0);
  relay::ToDaemon message;
  if (got > 0) ck_assert(message.ParseFromArray(buffer.data(), static_cast<int>(got)));
  return message;  // without a body: the end of the connection
}

void send_message(int fd, const relay::ToRelay& message) {
  const std::string bytes = message.SerializeAsString();
  ck_assert_int_eq(send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

START_TEST(a_newer_daemon_replaces_the_older) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays.reset();
  const auto older = usblease::connect_unix(rig.socket_path(), 1'000, SOCK_SEQPACKET);
  ck_assert(receive_message(older->get()).has_hello());
  ck_assert(receive_message(older->get()).has_connected());
  ck_assert(receive_message(older->get()).has_device_seen());
  const auto newer = usblease::connect_unix(rig.socket_path(), 1'000, SOCK_SEQPACKET);
  ck_assert(receive_message(newer->get()).has_hello());
  ck_assert_int_eq(receive_message(older->get()).body_case(), relay::ToDaemon::BODY_NOT_SET);
  rig.ping(1);
}
END_TEST

START_TEST(messages_about_another_token_are_ignored) {
  Rig rig;
  rig.start_relay(700);
  rig.wait_for_device();
  rig.relays.reset();
  const auto daemon = usblease::connect_unix(rig.socket_path(), 1'000, SOCK_SEQPACKET);
  relay::ToRelay renew;
  renew.mutable_renew()->set_token(kToken + 1);
  renew.mutable_renew()->set_deadline_ns(rig.deadline_ns + 60'000 * kMs);
  send_message(daemon->get(), renew);
  relay::ToRelay revoke;
  revoke.mutable_revoke()->set_token(kToken + 1);
  send_message(daemon->get(), revoke);
  relay::ToRelay ack;
  ack.mutable_ack()->set_token(kToken + 1);
  send_message(daemon->get(), ack);
  rig.ping(1);
  for (;;) {
    const auto message = receive_message(daemon->get());
    ck_assert_int_ne(message.body_case(), relay::ToDaemon::BODY_NOT_SET);
    if (!message.has_ended()) continue;
    ck_assert_int_eq(message.ended().why(), relay::ENDING_DEADLINE);
    ck_assert_uint_lt(message.ended().at_boottime_ns(), rig.deadline_ns + 5'000 * kMs);
    return;
  }
}
END_TEST

START_TEST(garbage_from_a_daemon_costs_the_connection_only) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  rig.relays.reset();
  for (const std::string& garbage : {std::string("\xff\xff\xff\xff"), std::string(5'000, 'x')}) {
    const auto daemon = usblease::connect_unix(rig.socket_path(), 1'000, SOCK_SEQPACKET);
    ck_assert_int_gt(send(daemon->get(), garbage.data(), garbage.size(), MSG_NOSIGNAL), 0);
    while (receive_message(daemon->get()).body_case() != relay::ToDaemon::BODY_NOT_SET) {
    }
  }
  rig.ping(1);
}
END_TEST

START_TEST(other_users_are_not_served) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  // Let them through where the file modes alone would stop them.
  ck_assert_int_eq(chmod(rig.directory.path().c_str(), 0755), 0);
  ck_assert_int_eq(chmod(rig.directory.path("relays").c_str(), 0755), 0);
  ck_assert_int_eq(chmod(rig.socket_path().c_str(), 0666), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (setresuid(kNobody - 1, kNobody - 1, kNobody - 1) != 0) _exit(2);
    const auto daemon = usblease::connect_unix(rig.socket_path(), 1'000, SOCK_SEQPACKET);
    if (!daemon) _exit(3);
    pollfd ready{daemon->get(), POLLIN, 0};
    char byte = 0;
    if (poll(&ready, 1, 10'000) != 1) _exit(4);
    _exit(recv(daemon->get(), &byte, 1, 0) == 0 ? 0 : 5);
  }
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
  ck_assert(!rig.heard.has("lost dongle.7"));
  rig.relays->revoke("dongle", kToken);  // the daemon's own connection is untouched
  rig.wait_heard("fenced");
}
END_TEST

// ---- the process ----

START_TEST(the_sandbox_is_in_force) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  const pid_t pid = rig.relay_pid;
  const auto expect = [pid](const char* field, const std::string& want) {
    const std::string got = proc_status(pid, field).value_or("absent");
    ck_assert_msg(got == want, "%s is \"%s\", not \"%s\"", field, got.c_str(), want.c_str());
  };
#if !USBLEASE_SANITIZED
  expect("Seccomp", "2");
#endif
  expect("NoNewPrivs", "1");
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) expect(set, "0000000000000000");
  for (const char* ids : {"Uid", "Gid"}) expect(ids, "65534\t65534\t65534\t65534");
  expect("Groups", "");
  ck_assert_int_ne(getsid(pid), getsid(0));
  ck_assert_int_ne(getpgid(pid), getpgid(0));
  // 0..5, the timer, the daemon's connection. None of this test's own.
  std::size_t descriptors = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    ++descriptors;
  }
  ck_assert_uint_eq(descriptors, 8);
}
END_TEST

START_TEST(a_stop_of_the_daemon_does_not_reach_it) {
  Rig rig;
  rig.start_relay(60'000);
  rig.wait_for_device();
  for (const int signal_number : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE}) kill(rig.relay_pid, signal_number);
  rig.ping(1);
}
END_TEST

START_TEST(bad_arguments_are_named) {
  const std::vector<std::vector<const char*>> cases = {
      {},
      {"--device", "NO", "--token", "1"},
      {"--device", "d", "--token", "x"},
      {"--device", "d", "--token", "-1"},
      {"--device", "d", "--token", "1", "--guest", "nobody"},
      {"--nonsense"},
      {"--device", "d", "--token", "1", "--guest", kGuestUuid, "--instance", "1", "--peer-pid", "1", "--deadline-ns",
       "1", "--uid", "4294967295", "--gid", "1"},
  };
  for (const auto& arguments : cases) {
    std::vector<char*> argv = {const_cast<char*>(USBLEASE_RELAY)};
    for (const char* argument : arguments) argv.push_back(const_cast<char*>(argument));
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      const int null = open("/dev/null", O_RDWR);
      dup2(null, STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 2);
  }
}
END_TEST

Suite* make_suite() {
  Suite* suite = suite_create("relay-program");
  const auto add = [suite](const char* name, std::initializer_list<const TTest*> tests) {
    TCase* group = tcase_create(name);
    for (const TTest* test : tests) tcase_add_test(group, test);
    tcase_set_timeout(group, 60);
    suite_add_tcase(suite, group);
  };
  add("deadline", {packets_flow, nothing_reaches_the_device_after_the_deadline, an_idle_stream_ends_at_the_deadline,
                   a_relay_stopped_over_its_deadline_lets_nothing_pass, renewals_keep_the_stream, revoke_fences});
  add("daemon", {an_acknowledged_relay_exits, the_deadline_holds_without_a_daemon, a_new_daemon_renews_and_revokes,
                 a_killed_relay_is_lost, a_relay_killed_while_no_daemon_ran_is_lost,
                 a_stopped_relay_does_not_hold_up_a_new_daemon, adopting_nothing_is_done_at_once,
                 a_relay_that_cannot_be_executed_is_lost, one_relay_a_token});
  add("ends", {an_endpoint_that_never_closes_is_never_fenced, an_endpoint_that_dies, endpoints_that_misbehave,
               a_guest_that_sends_garbage});
  add("control", {a_newer_daemon_replaces_the_older, messages_about_another_token_are_ignored,
                  garbage_from_a_daemon_costs_the_connection_only, other_users_are_not_served});
  add("process", {the_sandbox_is_in_force, a_stop_of_the_daemon_does_not_reach_it, bad_arguments_are_named});
  return suite;
}

}  // namespace

int main() {
  // A test that fails leaves its relay, which waits for an Ack: it becomes a child of this process then.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  SRunner* runner = srunner_create(make_suite());
  srunner_run_all(runner, CK_NORMAL);
  for (const pid_t pid : children()) kill(pid, SIGKILL);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
