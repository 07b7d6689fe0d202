// attach: progress, the wait's end, Ctrl-C, and a daemon that restarts meanwhile.
#include <memory>

#include "tests/unit/cli/cases.h"
#include "tests/unit/cli/program.h"

namespace {

using namespace usblease;

api::ServerFrame queued(const api::ClientFrame& request, std::uint32_t ahead) {
  api::ServerFrame frame;
  frame.set_id(request.id());
  frame.set_more(true);
  frame.mutable_status()->set_code(command::CODE_QUEUED);
  auto* progress = frame.mutable_attach_progress();
  progress->set_stage("queued");
  auto* obstacle = progress->add_obstacles();
  obstacle->set_device("dongle");
  obstacle->set_guest("vm1");
  obstacle->set_host("host1");
  obstacle->set_token(17);
  obstacle->set_until_unix_s(1'700'000'000);
  obstacle->set_ahead(ahead);
  return frame;
}

api::ServerFrame stage(const api::ClientFrame& request, const char* name) {
  api::ServerFrame frame;
  frame.set_id(request.id());
  frame.set_more(true);
  frame.mutable_attach_progress()->set_stage(name);
  return frame;
}

api::ServerFrame granted() {
  api::ServerFrame frame;
  auto* grant = frame.mutable_attach()->add_grants();
  grant->set_device("dongle");
  grant->set_token(18);
  return frame;
}

const std::string kWaiting = "waiting for dongle: held by guest vm1 on host1 until 2023-11-14 22:13:20 (token 17), ";

START_TEST(waiting_is_shown_and_ends_with_the_token) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "--wait", "1h", "--for", "2h", "--priority", "-3"});
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  const auto& attach = request.attach();
  check_text(attach.guest(), "vm2");
  ck_assert_uint_eq(attach.request_id().size(), 32);
  ck_assert_uint_eq(attach.wait_ms(), 3'600'000);
  ck_assert_uint_eq(attach.duration_s(), 7200);
  ck_assert_int_eq(attach.priority(), -3);
  peer.send(queued(request, 2));
  peer.send(queued(request, 2));  // no change: no line
  peer.send(queued(request, 1));
  peer.send(stage(request, "granted"));
  peer.send(stage(request, "attaching"));
  peer.finish(request, granted());
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  check_text(outcome.err,
             kWaiting + "2 ahead\n" + kWaiting + "1 ahead\ngranted: dongle for vm2\nattaching dongle to vm2\n");
  check_text(outcome.out, "dongle attached to vm2 under token 18\n");
}
END_TEST

START_TEST(quiet_and_json) {
  for (const char* option : {"-q", "--json"}) {
    FakeDaemon daemon;
    Program program({option, "-q", "attach", "vm2", "dongle", "--wait", "5"});
    Peer peer = daemon.accept();
    const auto request = peer.receive();
    peer.send(queued(request, 0));
    peer.finish(request, granted());
    const auto outcome = program.wait();
    ck_assert_int_eq(outcome.exit_code, 0);
    check_text(outcome.err, "");
    check_text(outcome.out,
               std::string(option) == "-q" ? "" : "{\"grants\":[{\"device\":\"dongle\",\"token\":\"18\"}]}\n");
  }
}
END_TEST

START_TEST(every_run_has_its_own_request_id) {
  std::string ids[2];
  for (auto& id : ids) id = exchange({"attach", "vm2", "dongle"}, granted()).request.attach().request_id();
  ck_assert_str_ne(ids[0].c_str(), ids[1].c_str());
}
END_TEST

START_TEST(a_refusal_ends_the_wait) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "--wait", "1h"});
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  peer.send(queued(request, 0));
  peer.fail(request, command::CODE_TIMED_OUT, "dongle was not free within 1h; ask again with a longer --wait");
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 4);
  check_text(outcome.err, kWaiting.substr(0, kWaiting.size() - 2) +
                              "\nusblease: error: dongle was not free within 1h; ask again with a longer --wait\n");
}
END_TEST

START_TEST(a_restarted_daemon_gets_the_same_request) {
  std::unique_ptr<Program> program;
  std::string first;
  {
    FakeDaemon daemon;
    program = std::make_unique<Program>(std::vector<std::string>{"attach", "vm2", "dongle", "--wait", "1h"});
    Peer peer = daemon.accept();
    const auto request = peer.receive();
    first = request.attach().SerializeAsString();
    peer.send(queued(request, 2));
    program->wait_errors("2 ahead");
  }  // the daemon dies, and its socket goes
  program->wait_errors("usbleased is away");
  FakeDaemon daemon;
  {
    Peer peer = daemon.accept(false);  // not ready yet: hangs up at once
    peer.hang_up();
  }
  {
    Peer peer = daemon.accept();
    const auto request = peer.receive();
    ck_assert(request.attach().SerializeAsString() == first);
    peer.fail(request, command::CODE_UNAVAILABLE, "no coordinator yet");
  }
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  ck_assert(request.attach().SerializeAsString() == first);
  peer.finish(request, granted());
  const auto outcome = program->wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  check_text(outcome.out, "dongle attached to vm2 under token 18\n");
}
END_TEST

START_TEST(repeats_are_bounded) {
  std::unique_ptr<Program> program;
  {
    FakeDaemon daemon;
    program = std::make_unique<Program>(std::vector<std::string>{"attach", "vm2", "dongle", "-t", "1"});
    Peer peer = daemon.accept();
    peer.receive();
  }
  const auto outcome = program->wait();
  ck_assert_int_eq(outcome.exit_code, 5);
  ck_assert_ptr_nonnull(strstr(outcome.err.c_str(), "whether the lease was granted is not known"));
}
END_TEST

START_TEST(no_answer_leaves_it_open) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "-t", "1"});
  Peer peer = daemon.accept();
  peer.receive();
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 4);
  ck_assert_ptr_nonnull(strstr(outcome.err.c_str(), "whether the lease was granted is not known"));
}
END_TEST

START_TEST(an_answer_of_unavailable_ends_a_request_that_never_waited) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "--wait", "1h"});
  Peer peer = daemon.accept();
  peer.fail(peer.receive(), command::CODE_UNAVAILABLE, "the disk is full; make room");
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 5);
  check_text(outcome.err, "usblease: error: the disk is full; make room\n");
}
END_TEST

START_TEST(ctrl_c_cancels) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "--wait", "1h"});
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  peer.send(queued(request, 0));
  program.wait_errors("(token 17)");
  program.interrupt();
  peer.wait_closed();
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 130);
  ck_assert_ptr_nonnull(strstr(outcome.err.c_str(), "usblease: error: interrupted; usbleased cancels the request"));
}
END_TEST

START_TEST(a_terminal_has_one_line_that_changes) {
  FakeDaemon daemon;
  Program program({"attach", "vm2", "dongle", "--wait", "1h"}, "", Program::Streams::kTerminal);
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  peer.send(queued(request, 2));
  // 60 columns: cut to 59, so that the terminal does not wrap.
  program.read_until("\r\033[Kwaiting for dongle: held by guest vm1 on host1 until 202...");
  peer.send(stage(request, "attaching"));
  program.read_until("\r\033[Kattaching dongle to vm2");
  peer.finish(request, granted());
  program.read_until("\r\033[Kdongle attached to vm2 under token 18\r\n");
  ck_assert_int_eq(program.wait().exit_code, 0);
}
END_TEST

}  // namespace

TCase* attach_cases() {
  TCase* cases = tcase_create("attach");
  tcase_set_timeout(cases, 60);
  tcase_add_unchecked_fixture(cases, make_test_directory, remove_test_directory);
  tcase_add_test(cases, waiting_is_shown_and_ends_with_the_token);
  tcase_add_test(cases, quiet_and_json);
  tcase_add_test(cases, every_run_has_its_own_request_id);
  tcase_add_test(cases, a_refusal_ends_the_wait);
  tcase_add_test(cases, a_restarted_daemon_gets_the_same_request);
  tcase_add_test(cases, repeats_are_bounded);
  tcase_add_test(cases, no_answer_leaves_it_open);
  tcase_add_test(cases, an_answer_of_unavailable_ends_a_request_that_never_waited);
  tcase_add_test(cases, ctrl_c_cancels);
  tcase_add_test(cases, a_terminal_has_one_line_that_changes);
  return cases;
}
