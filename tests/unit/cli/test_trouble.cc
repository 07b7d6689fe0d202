// A daemon that is away, refuses, or does what no daemon should.
#include <sys/socket.h>

#include <chrono>

#include "common/unix_socket.h"
#include "tests/unit/cli/cases.h"
#include "tests/unit/cli/program.h"

namespace {

using namespace usblease;

void fails(const Outcome& outcome, int exit_code, const std::string& message_holds) {
  ck_assert_msg(outcome.exit_code == exit_code, "exit %d: %s", outcome.exit_code, outcome.err.c_str());
  ck_assert_msg(outcome.err.starts_with("usblease: error: ") && outcome.err.find(message_holds) != std::string::npos,
                "%s", outcome.err.c_str());
  ck_assert_msg(outcome.err.find('\n') == outcome.err.size() - 1, "not one line: %s", outcome.err.c_str());
  check_text(outcome.out, "");
}

START_TEST(nobody_listens) {
  Program program({"list"});
  fails(program.wait(), 5, "systemctl status usbleased");
  auto listening = listen_unix(test_socket(), 0600, SOCK_STREAM);
  listening->reset();  // a socket that nobody serves
  Program again({"attach", "vm1", "dongle", "--wait", "1h"});
  fails(again.wait(), 5, "usbleased does not answer");
  unlink(test_socket().c_str());
}
END_TEST

START_TEST(bad_usage_needs_no_daemon) {
  Program program({"revoke", "dongle"});
  fails(program.wait(), 2, "needs --reason");
  Program json({"--json", "frob"});
  fails(json.wait(), 2, "no verb `frob`");
}
END_TEST

struct Answer {
  command::Code code;
  const char* message;
  int exit_code;
  const char* shown;
};

constexpr Answer kAnswers[] = {
    {command::CODE_REFUSED, "dongle is held by guest vm1", 3, "dongle is held by guest vm1"},
    {command::CODE_DENIED, "you may not", 3, "you may not"},
    {command::CODE_TIMED_OUT, "too late", 4, "too late"},
    {command::CODE_NOT_FOUND, "no device \x1b[2J\nx", 6, "no device \\x1B[2J\\x0Ax"},
    {command::CODE_BAD_REQUEST, "bad", 2, "bad"},
    {command::CODE_UNAVAILABLE, "the disk is full", 5, "the disk is full"},
    {command::CODE_INTERNAL, "", 1, "CODE_INTERNAL"},
    {command::CODE_QUEUED, "", 1, "CODE_QUEUED"},
    {command::CODE_UNSPECIFIED, "", 1, "CODE_UNSPECIFIED"},
};

START_TEST(a_failed_status_is_the_exit_code) {
  const Answer& answer = kAnswers[_i];
  FakeDaemon daemon;
  Program program({"detach", "vm1", "dongle", "--json"});
  Peer peer = daemon.accept();
  peer.fail(peer.receive(), answer.code, answer.message);
  const auto outcome = program.wait();
  fails(outcome, answer.exit_code, answer.shown);
  ck_assert_msg(outcome.err.find("not known") == std::string::npos, "the daemon did answer: %s", outcome.err.c_str());
}
END_TEST

START_TEST(another_version_is_refused) {
  FakeDaemon daemon;
  {
    Program program({"list"});
    Peer peer = daemon.accept(false);
    api::ServerFrame reply;
    reply.mutable_hello()->set_version(7);
    peer.finish(peer.receive(), reply);
    fails(program.wait(), 5, "usbleased speaks version 7");
  }
  Program program({"list"});
  Peer peer = daemon.accept(false);
  peer.fail(peer.receive(), command::CODE_BAD_REQUEST, "version 1 is not spoken here");
  fails(program.wait(), 2, "version 1 is not spoken here");
}
END_TEST

START_TEST(a_refused_connection_says_why) {
  FakeDaemon daemon;
  Program program({"list"});
  Peer peer = daemon.accept(false);
  peer.receive();
  peer.fail({}, command::CODE_UNAVAILABLE, "512 connections are open; try again");
  fails(program.wait(), 5, "512 connections are open");
}
END_TEST

// Each of these is sent instead of an answer.
struct Garbage {
  const char* name;
  std::string bytes;
};

std::vector<Garbage> garbage() {
  api::ServerFrame other_id;
  other_id.set_id(99);
  other_id.mutable_status()->set_code(command::CODE_OK);
  other_id.mutable_list_devices();
  api::ServerFrame other_kind = other_id;
  other_kind.set_id(2);
  other_kind.mutable_queue();
  api::ServerFrame progress;
  progress.set_id(2);
  progress.set_more(true);
  progress.mutable_attach_progress()->set_stage("queued");
  return {{"oversize", std::string("\x00\x10\x00\x01", 4)},
          {"http", "HTTP/1.1 400 Bad Request\r\n\r\n"},
          {"no message", encode_frame("\xff\xff\xff\xff")},
          {"bad utf-8", encode_frame(std::string("\x08\x02\x1a\x05\x08\x01\x12\x01\xff", 9))},
          {"empty", encode_frame("")},
          {"other id", encode_frame(other_id.SerializeAsString())},
          {"other kind", encode_frame(other_kind.SerializeAsString())},
          {"other progress", encode_frame(progress.SerializeAsString())}};
}

START_TEST(garbage_is_told_as_such) {
  const Garbage sent = garbage()[static_cast<std::size_t>(_i)];
  FakeDaemon daemon;
  Program program({"list"});
  Peer peer = daemon.accept();
  peer.receive();
  peer.send_raw(sent.bytes);
  fails(program.wait(), 1, "usbleased sent ");
}
END_TEST

START_TEST(garbage_instead_of_a_hello) {
  FakeDaemon daemon;
  Program program({"attach", "vm1", "dongle", "--wait", "60"});
  Peer peer = daemon.accept(false);
  peer.receive();
  peer.send_raw("SSH-2.0-OpenSSH\r\n");
  fails(program.wait(), 1, "usbleased sent garbage");
}
END_TEST

START_TEST(a_daemon_that_hangs_up) {
  FakeDaemon daemon;
  {
    Program program({"list"});
    // Once more: it may be one that starts anew.
    daemon.accept(false).hang_up();
    daemon.accept(false).hang_up();
    fails(program.wait(), 5, "closed the connection");
  }
  {
    Program program({"list"});
    for (int i = 0; i < 2; ++i) {
      Peer peer = daemon.accept();
      peer.receive();
      peer.send_raw(std::string("\0\0\1", 3));  // in the middle of a header
      peer.hang_up();
    }
    fails(program.wait(), 5, "closed the connection");
  }
  Program program({"revoke", "dongle", "--reason", "x"});
  Peer peer = daemon.accept();
  peer.receive();
  peer.hang_up();
  fails(program.wait(), 5, "whether it was done is not known");
}
END_TEST

START_TEST(a_daemon_that_never_answers) {
  FakeDaemon daemon;
  const auto began = std::chrono::steady_clock::now();
  {
    Program program({"list", "-t", "1"});
    Peer peer = daemon.accept(false);
    fails(program.wait(), 4, "did not answer in time");
  }
  {
    Program program({"-t", "1s", "detach", "vm1", "dongle"});
    Peer peer = daemon.accept();
    peer.receive();
    peer.send_raw(std::string("\0\0\1\0half", 8));
    fails(program.wait(), 4, "whether it was done is not known");
  }
  ck_assert(std::chrono::steady_clock::now() - began < std::chrono::seconds(15));
}
END_TEST

START_TEST(a_full_disk_is_not_success) {
  FakeDaemon daemon;
  Program program({"status"}, "", Program::Streams::kFullOutput);
  Peer peer = daemon.accept();
  api::ServerFrame reply;
  reply.mutable_status_reply()->set_cluster_id("c1");
  peer.finish(peer.receive(), reply);
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 1);
  ck_assert_ptr_nonnull(strstr(outcome.err.c_str(), "standard output"));
}
END_TEST

}  // namespace

TCase* trouble_cases() {
  TCase* cases = tcase_create("trouble");
  tcase_set_timeout(cases, 60);
  tcase_add_unchecked_fixture(cases, make_test_directory, remove_test_directory);
  tcase_add_test(cases, nobody_listens);
  tcase_add_test(cases, bad_usage_needs_no_daemon);
  tcase_add_loop_test(cases, a_failed_status_is_the_exit_code, 0, static_cast<int>(std::size(kAnswers)));
  tcase_add_test(cases, another_version_is_refused);
  tcase_add_test(cases, a_refused_connection_says_why);
  tcase_add_loop_test(cases, garbage_is_told_as_such, 0, static_cast<int>(garbage().size()));
  tcase_add_test(cases, garbage_instead_of_a_hello);
  tcase_add_test(cases, a_daemon_that_hangs_up);
  tcase_add_test(cases, a_daemon_that_never_answers);
  tcase_add_test(cases, a_full_disk_is_not_success);
  return cases;
}
