// The whole program as libvirt runs it, against a daemon that behaves well, badly or not at all.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "common/boottime.h"
#include "common/config.h"
#include "common/sanitized.h"
#include "tests/unit/hook/fake_daemon.h"
#include "tests/unit/hook/hook_testing.h"

using namespace usblease;
using namespace usblease::hook::testing;

namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

struct Ended {
  int status = -1;
  std::string out;
  std::string err;
  std::uint64_t took_ms = 0;
  pid_t pid = 0;
};

UniqueFd file_of(const std::string& text) {
  UniqueFd fd(memfd_create("hook-test", MFD_CLOEXEC));
  ck_assert(fd);
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t count = write(fd.get(), text.data() + at, text.size() - at);
    ck_assert_int_gt(count, 0);
    at += static_cast<std::size_t>(count);
  }
  lseek(fd.get(), 0, SEEK_SET);
  return fd;
}

std::string text_of(const UniqueFd& fd) {
  std::string text;
  std::array<char, 4096> chunk{};
  lseek(fd.get(), 0, SEEK_SET);
  for (ssize_t count = 1; count > 0;) {
    count = read(fd.get(), chunk.data(), chunk.size());
    if (count > 0) text.append(chunk.data(), static_cast<std::size_t>(count));
  }
  return text;
}

// A directory with a configuration, and the hook run with it.
class Place {
 public:
  explicit Place(const std::string& more = "") {
    dir_.write("usbleased.conf", "[daemon]\nrun_dir=" + dir_.path() + "\n[hook]\ndeadline_ms=1000\n" + more);
  }

  [[nodiscard]] std::string socket() const { return dir_.at("usbleased.sock"); }
  [[nodiscard]] std::string guest_socket(const std::string& device) const {
    return guest_socket_path(dir_.path(), kUuid, device);
  }
  [[nodiscard]] const TempDir& dir() const { return dir_; }

  [[nodiscard]] Ended run(const std::vector<std::string>& arguments, const std::string& xml) const {
    std::vector<std::string> all = {HOOK_PROGRAM};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    argv.reserve(all.size() + 1);
    for (auto& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::string config = "USBLEASE_CONFIG=" + dir_.at("usbleased.conf");
    std::string locale = "LC_ALL=C";
    // AddressSanitizer's dlopen knows nothing of the program's own run path.
    std::string libraries = "LD_LIBRARY_PATH=" + std::filesystem::path(HOOK_PROGRAM).parent_path().string();
    std::array<char*, 4> environment = {config.data(), locale.data(), nullptr, nullptr};
#if USBLEASE_SANITIZED
    environment[2] = libraries.data();
#endif

    const UniqueFd in = file_of(xml);
    const UniqueFd out = file_of("");
    const UniqueFd err = file_of("");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in.get(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out.get(), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err.get(), STDERR_FILENO);
    Ended ended;
    const std::uint64_t before_ns = boottime_now_ns();
    ck_assert_int_eq(posix_spawn(&ended.pid, HOOK_PROGRAM, &actions, nullptr, argv.data(), environment.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    ended.status = wait_for(ended.pid);
    ended.took_ms = (boottime_now_ns() - before_ns) / kNsPerMs;
    ended.out = text_of(out);
    ended.err = text_of(err);
    ck_assert_str_eq(ended.out.c_str(), "");
    return ended;
  }

  [[nodiscard]] Ended run(const std::string& operation, const std::string& xml) const {
    return run({"vm", operation, "begin", "-"}, xml);
  }

 private:
  static int wait_for(pid_t pid) {
    const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    pollfd ready{process.get(), POLLIN, 0};
    const bool ended = poll(&ready, 1, 30'000) > 0;
    if (!ended) kill(pid, SIGKILL);
    int status = 0;
    waitpid(pid, &status, 0);
    ck_assert_msg(ended, "the hook hangs");
    ck_assert_msg(WIFEXITED(status), "the hook died of signal %d", WTERMSIG(status));
    return WEXITSTATUS(status);
  }

  TempDir dir_;
};

const std::vector<std::string> kStarting = {"prepare", "start", "migrate", "restore"};
const std::vector<std::string> kEnding = {"stopped", "release", "reconnect"};

std::string declares_dongle(const std::string& more = "") {
  return domain_xml("", our_metadata("<usblease:device name='dongle' " + more + "/>"));
}

void assert_refused(const Ended& ended, const std::string& part) {
  ck_assert_int_eq(ended.status, 1);
  ck_assert_msg(ended.err.rfind("usblease: ", 0) == 0, "%s", ended.err.c_str());
  ck_assert_msg(ended.err.find(part) != std::string::npos, "\"%s\" lacks \"%s\"", ended.err.c_str(), part.c_str());
  ck_assert_msg(std::count(ended.err.begin(), ended.err.end(), '\n') == 1 && ended.err.back() == '\n',
                "not one line: %s", ended.err.c_str());
}

void assert_passed(const Ended& ended) {
  ck_assert_msg(ended.status == 0 && ended.err.empty(), "status %d, %s", ended.status, ended.err.c_str());
}

}  // namespace

START_TEST(declares_nothing_means_no_contact) {
  const Place place("[device dongle]\nusb=0529:0001\n");
  const FakeDaemon daemon(place.socket(), answer(command::CODE_REFUSED, "no"));
  const std::string xmls[] = {
      domain_xml("<disk type='file'><source file='/srv/a.qcow2'/></disk>"),
      domain_xml("<redirdev bus='usb' type='spicevmc'/><disk type='block'><source dev='/dev/null'/></disk>"),
      domain_xml("<hostdev mode='subsystem' type='usb'><source><vendor id='0x046d'/><product id='0xc077'/></source>"
                 "</hostdev>",
                 "<app xmlns='urn:usblease:domain:2'/>"),
      "<domain><unclosed>",
      "<domain>" + std::string(50UL * 1024 * 1024, ' '),
  };
  for (const auto& xml : xmls) {
    for (const char* operation :
         {"prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect"}) {
      assert_passed(place.run(operation, xml));
    }
  }
  ck_assert_int_eq(daemon.accepted(), 0);
}
END_TEST

START_TEST(unknown_operations_are_none_of_our_business) {
  const Place place;
  const FakeDaemon daemon(place.socket(), answer(command::CODE_REFUSED, "no"));
  for (const char* operation : {"attach", "thaw", ""}) assert_passed(place.run(operation, declares_dongle()));
  assert_passed(place.run(std::vector<std::string>{}, ""));
  assert_passed(place.run(std::vector<std::string>{"vm"}, ""));
  ck_assert_int_eq(daemon.accepted(), 0);
}
END_TEST

START_TEST(ok_lets_it_pass) {
  const Place place;
  const FakeDaemon daemon(place.socket(), answer(command::CODE_OK));
  for (const char* operation :
       {"prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect"}) {
    assert_passed(place.run(operation, declares_dongle()));
  }
  ck_assert_int_eq(daemon.accepted(), 8);
}
END_TEST

START_TEST(the_call_says_everything) {
  const Place place;
  FakeDaemon daemon(place.socket(), answer(command::CODE_OK));
  const std::uint64_t before_ns = boottime_now_ns();
  assert_passed(place.run("prepare", domain_xml(redirdev(place.guest_socket("probe")),
                                                our_metadata("<usblease:device name='dongle' required='no' wait='3'/>"
                                                             "<usblease:device name='probe' wait='2'/>"))));
  assert_passed(
      place.run("stopped", domain_xml("", our_metadata("<usblease:device name='dongle' wait='3'/>"), "<domain>")));
  const auto calls = daemon.calls();
  ck_assert_uint_eq(calls.size(), 2);
  const api::HookCall& first = calls[0];
  ck_assert_str_eq(first.operation().c_str(), "prepare");
  ck_assert_str_eq(first.guest_name().c_str(), "vm");
  ck_assert_str_eq(first.guest_uuid().c_str(), kUuid);
  ck_assert_int_eq(first.domain_id(), 7);
  ck_assert_int_eq(first.devices_size(), 2);
  ck_assert_str_eq(first.devices(0).device().c_str(), "dongle");
  ck_assert_int_eq(first.devices(0).how(), api::DECLARATION_METADATA);
  ck_assert(!first.devices(0).required());
  ck_assert_uint_eq(first.devices(0).wait_s(), 3);
  ck_assert_str_eq(first.devices(1).device().c_str(), "probe");
  ck_assert_int_eq(first.devices(1).how(), api::DECLARATION_REDIRDEV);
  ck_assert(first.devices(1).required());
  ck_assert_uint_eq(first.devices(1).wait_s(), 2);
  ck_assert(first.invoked_boottime_ns() > before_ns && first.invoked_boottime_ns() < boottime_now_ns());
  ck_assert_int_eq(first.libvirtd_pid(), getpid());
  ck_assert_uint_eq(first.libvirtd_start_ticks(), *process_start_ticks(getpid()));
  // deadline_ms=1000 and the largest wait.
  ck_assert(first.deadline_ms() > 1'000 && first.deadline_ms() <= 4'000);
  const api::HookCall& last = calls[1];
  ck_assert_str_eq(last.operation().c_str(), "stopped");
  ck_assert_int_eq(last.domain_id(), -1);
  ck_assert(last.deadline_ms() <= 2'000);
}
END_TEST

START_TEST(a_refusal_stops_the_start_with_the_daemons_sentence) {
  const Place place;
  const std::string why =
      "dongle is held by guest other on host b until 17:40; type `usblease queue dongle`\nline 2\x1b[2J";
  const FakeDaemon daemon(place.socket(), answer(command::CODE_REFUSED, why));
  for (const auto& operation : kStarting) {
    assert_refused(place.run(operation, declares_dongle()),
                   "guest vm: it declares dongle: dongle is held by guest other on host b until 17:40; type "
                   "`usblease queue dongle`\\x0Aline 2\\x1B[2J");
  }
  assert_refused(place.run("started", declares_dongle()), "held by guest other");
  for (const auto& operation : kEnding) assert_passed(place.run(operation, declares_dongle()));
}
END_TEST

START_TEST(other_codes_stop_a_start_and_no_running_guest) {
  for (const auto code :
       {command::CODE_TIMED_OUT, command::CODE_NOT_FOUND, command::CODE_BAD_REQUEST, command::CODE_DENIED,
        command::CODE_UNAVAILABLE, command::CODE_INTERNAL, command::CODE_QUEUED, command::CODE_UNSPECIFIED}) {
    const Place place;
    const FakeDaemon daemon(place.socket(), answer(code));
    assert_refused(place.run("prepare", declares_dongle()), "it declares dongle: usbleased refused without saying why");
    assert_passed(place.run("started", declares_dongle()));
    assert_passed(place.run("release", declares_dongle()));
  }
}
END_TEST

START_TEST(no_daemon) {
  const Place place;
  for (const auto& operation : kStarting) {
    assert_refused(place.run(operation, declares_dongle()),
                   "it declares dongle: usbleased does not answer (cannot connect to " + place.socket());
  }
  assert_refused(place.run("prepare", declares_dongle()), "`systemctl status usbleased`");
  assert_passed(place.run("started", declares_dongle()));
  for (const auto& operation : kEnding) assert_passed(place.run(operation, declares_dongle()));
}
END_TEST

START_TEST(a_silent_daemon_costs_no_more_than_the_deadline) {
  const Place place;
  const FakeDaemon daemon(place.socket(), [](Connection& connection, FakeDaemon&) { connection.wait_for_end(); });
  const Ended prepare = place.run("prepare", declares_dongle());
  assert_refused(prepare, "it declares dongle: usbleased did not answer in time");
  ck_assert(prepare.took_ms >= 1'000 && prepare.took_ms < 8'000);
  const Ended waiting = place.run("prepare", declares_dongle("wait='2'"));
  assert_refused(waiting, "did not answer in time");
  ck_assert(waiting.took_ms >= 3'000 && waiting.took_ms < 10'000);
  const Ended started = place.run("started", declares_dongle("wait='60'"));
  assert_passed(started);
  ck_assert(started.took_ms >= 1'000 && started.took_ms < 8'000);
  const Ended stopped = place.run("stopped", declares_dongle("wait='60'"));
  assert_passed(stopped);
  ck_assert(stopped.took_ms >= 2'000 && stopped.took_ms < 9'000);
}
END_TEST

START_TEST(a_daemon_that_has_lost_its_way) {
  struct Row {
    const char* part;
    FakeDaemon::Behaviour behaviour;
  };
  const auto reads_then = [](std::function<void(Connection&)> then) {
    return [then = std::move(then)](Connection& connection, FakeDaemon&) {
      api::ClientFrame frame;
      connection.receive(frame);
      connection.receive(frame);
      then(connection);
    };
  };
  const auto sends = [&](std::uint64_t id, bool more, int times) {
    return reads_then([=](Connection& connection) {
      api::ServerFrame frame;
      frame.set_id(id);
      frame.set_more(more);
      frame.mutable_status()->set_code(command::CODE_OK);
      for (int i = 0; i < times; ++i) connection.send(frame);
      connection.wait_for_end();
    });
  };
  const Row rows[] = {
      {"usbleased closed the connection", [](Connection&, FakeDaemon&) {}},
      {"usbleased closed the connection", reads_then([](Connection&) {})},
      {"bytes that are no frame", reads_then([](Connection& c) { c.send_raw(std::string(64, '\xff')); })},
      {"a frame that cannot be read", reads_then([](Connection& c) { c.send_raw(encode_frame("\xff\xff\xff\xff")); })},
      {"usbleased closed the connection", reads_then([](Connection& c) {
         c.send_raw(
             std::string("\0\0\0\x10"
                         "ab",
                         6));
       })},
      {"a frame that nobody asked for", sends(77, false, 1)},
      {"progress without an end", sends(2, true, 1000)},
      {"did not answer in time", sends(1, false, 1)},  // Hello alone
      {"a frame that can", reads_then([](Connection& c) { c.send_raw(encode_frame(std::string(1024, '\x01'))); })},
  };
  for (const Row& row : rows) {
    const Place place;
    const FakeDaemon daemon(place.socket(), row.behaviour);
    assert_refused(place.run("prepare", declares_dongle()), row.part);
    assert_passed(place.run("started", declares_dongle()));
    assert_passed(place.run("release", declares_dongle()));
  }
}
END_TEST

START_TEST(progress_comes_before_the_verdict) {
  const Place place;
  const FakeDaemon daemon(place.socket(), [](Connection& connection, FakeDaemon&) {
    api::ClientFrame in;
    while (connection.receive(in)) {
      api::ServerFrame out;
      out.set_id(in.id());
      out.set_more(in.has_hook_call());
      out.mutable_status()->set_code(in.has_hook_call() ? command::CODE_QUEUED : command::CODE_OK);
      connection.send(out);
      if (!in.has_hook_call()) continue;
      out.set_more(false);
      out.mutable_status()->set_code(command::CODE_OK);
      connection.send(out);
    }
  });
  assert_passed(place.run("prepare", declares_dongle()));
}
END_TEST

START_TEST(another_version_says_both_numbers) {
  const Place place;
  const FakeDaemon daemon(place.socket(), [](Connection& connection, FakeDaemon&) {
    api::ClientFrame in;
    connection.receive(in);
    api::ServerFrame out;
    out.set_id(in.id());
    out.mutable_status()->set_code(command::CODE_BAD_REQUEST);
    out.mutable_status()->set_message("version 1 was offered, this is version 9");
    connection.send(out);
  });
  assert_refused(place.run("prepare", declares_dongle()), "version 1 was offered, this is version 9");
}
END_TEST

START_TEST(bad_input_fails_closed_where_it_counts) {
  const Place place;
  const FakeDaemon daemon(place.socket(), answer(command::CODE_OK));
  const std::string large(50UL * 1024 * 1024, ' ');
  const struct {
    std::string xml;
    const char* part;
  } rows[] = {
      {domain_xml("", our_metadata("<usblease:device name='NO SUCH'/>")), "usblease metadata, line 1: name="},
      {"<domain><hostdev>", "the domain XML cannot be read: line 1"},
      {"<?xml version='1.0'?><!DOCTYPE domain []><domain/>", "document type"},
      {"<domain><metadata>" + large + our_metadata("") + "</metadata></domain>", "larger than 16 MiB"},
      {domain_xml(redirdev(guest_socket_path(place.dir().path(), kOtherUuid, "dongle"))),
       "the socket of another guest"},
      {"<domain><metadata>" + our_metadata("<usblease:device name='dongle'/>") + "</metadata></domain>",
       "no valid <uuid>"},
      {"", "the domain XML cannot be read"},
  };
  for (const auto& row : rows) {
    for (const auto& operation : kStarting) assert_refused(place.run(operation, row.xml), row.part);
    assert_passed(place.run("started", row.xml));
    for (const auto& operation : kEnding) assert_passed(place.run(operation, row.xml));
  }
}
END_TEST

START_TEST(declarations_that_went_bad_still_tell_the_end) {
  const Place place;
  FakeDaemon daemon(place.socket(), answer(command::CODE_OK));
  assert_passed(place.run("stopped", domain_xml("", our_metadata("<usblease:oops/>"))));
  const auto calls = daemon.calls();
  ck_assert_uint_eq(calls.size(), 1);
  ck_assert_int_eq(calls[0].devices_size(), 0);
  ck_assert_str_eq(calls[0].guest_uuid().c_str(), kUuid);
}
END_TEST

START_TEST(a_broken_configuration) {
  const Place place("[daemon]\n");
  assert_refused(place.run("prepare", declares_dongle()), "this group is given twice");
  assert_passed(place.run("prepare", domain_xml("<disk type='block'><source dev='/dev/null'/></disk>")));
  assert_passed(place.run("started", declares_dongle()));
  for (const auto& operation : kEnding) assert_passed(place.run(operation, declares_dongle()));
  std::filesystem::remove(place.dir().at("usbleased.conf"));
  assert_refused(place.run("prepare", declares_dongle()), "No such file");
}
END_TEST

START_TEST(a_hostile_name_is_escaped) {
  const Place place;
  assert_refused(place.run(std::vector<std::string>{"v\nm\x1b[31m", "prepare", "begin", "-"}, declares_dongle()),
                 "guest v\\x0Am\\x1B[31m: it declares dongle");
}
END_TEST

int main() {
  return test::run_suite(
      "hook-program",
      {declares_nothing_means_no_contact, unknown_operations_are_none_of_our_business, ok_lets_it_pass,
       the_call_says_everything, a_refusal_stops_the_start_with_the_daemons_sentence,
       other_codes_stop_a_start_and_no_running_guest, no_daemon, a_silent_daemon_costs_no_more_than_the_deadline,
       a_daemon_that_has_lost_its_way, progress_comes_before_the_verdict, another_version_says_both_numbers,
       bad_input_fails_closed_where_it_counts, declarations_that_went_bad_still_tell_the_end, a_broken_configuration,
       a_hostile_name_is_escaped},
      120);
}
