// The shell, from a pipe and at a terminal, and completion.
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/unit/cli/cases.h"
#include "tests/unit/cli/program.h"

namespace {

using namespace usblease;

void answer_devices(FakeDaemon& daemon) {
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  ck_assert(request.has_list_devices());
  api::ServerFrame reply;
  for (const char* name : {"dongle", "donkey", "hsm", "d\x1b[2J"}) {
    reply.mutable_list_devices()->add_devices()->mutable_device()->set_name(name);
  }
  peer.finish(request, reply);
}

void answer_guests(FakeDaemon& daemon) {
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  ck_assert(request.has_list_guests());
  api::ServerFrame reply;
  for (const char* name : {"vm2", "vm1", "my guest", "v\nm"}) reply.mutable_list_guests()->add_names(name);
  peer.finish(request, reply);
}

START_TEST(a_pipe_is_read_line_by_line) {
  FakeDaemon daemon;
  Program program({}, "# a comment\nversion; help nope\n\nqueue hsm\n'open\nversion\n");
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  check_text(request.queue().device(), "hsm");
  peer.fail(request, command::CODE_NOT_FOUND, "no device hsm");
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);  // of the last one
  ck_assert_uint_eq(static_cast<unsigned>(std::count(outcome.out.begin(), outcome.out.end(), '\n')), 2);
  ck_assert_ptr_null(strstr(outcome.out.c_str(), "usblease >"));
  check_text(outcome.err,
             "usblease: error: there is no verb `nope`; `usblease help` lists them\n"
             "usblease: error: no device hsm\n"
             "usblease: error: the quote ' does not end on this line; close it\n");
}
END_TEST

START_TEST(the_exit_code_of_a_pipe_is_the_last_ones) {
  Program failed({}, "version\nfrob\n");
  ck_assert_int_eq(failed.wait().exit_code, 2);
  Program quit({}, "frob\nquit\nversion\n");
  const auto outcome = quit.wait();
  ck_assert_int_eq(outcome.exit_code, 2);
  check_text(outcome.out, "");
  Program empty({}, "");
  ck_assert_int_eq(empty.wait().exit_code, 0);
  Program long_line({}, std::string(70'000, 'x'));
  ck_assert_int_eq(long_line.wait().exit_code, 2);
}
END_TEST

START_TEST(global_options_hold_for_every_command) {
  FakeDaemon daemon;
  Program program({"-q", "--json"}, "queue hsm");
  Peer peer = daemon.accept();
  api::ServerFrame reply;
  reply.mutable_queue();
  peer.finish(peer.receive(), reply);
  check_text(program.wait().out, "{\"requests\":[]}\n");
}
END_TEST

START_TEST(one_argument_can_be_a_line) {
  Program program({"version; version"});
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  ck_assert_uint_eq(static_cast<unsigned>(std::count(outcome.out.begin(), outcome.out.end(), '\n')), 2);
}
END_TEST

START_TEST(ctrl_c_ends_a_pipe) {
  FakeDaemon daemon;
  Program program({}, "attach vm1 dongle --wait 1h; version\nversion\n");
  Peer peer = daemon.accept();
  peer.receive();
  program.interrupt();
  peer.wait_closed();
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 130);
  check_text(outcome.out, "");
}
END_TEST

START_TEST(a_terminal_has_a_prompt_completion_and_history) {
  FakeDaemon daemon;
  {
    Program program({}, "", Program::Streams::kTerminal);
    program.read_until("usblease # ");
    program.type("info do\t");
    answer_devices(daemon);
    program.read_until("n");
    program.type("\t");
    answer_devices(daemon);
    program.read_until("dongle  donkey");
    program.type("g\t");
    answer_devices(daemon);
    program.read_until("le ");
    program.type("\x03");  // drops the line, not the shell
    program.read_until("^C");
    program.type("vers\t\r");
    program.read_until("usblease 0.");
    program.read_until("usblease # ");
    program.type("attach vm1 dongle --wait 1h\r");
    Peer peer = daemon.accept();
    peer.receive();
    program.type("\x03");  // ends the command, not the shell
    peer.wait_closed();
    program.read_until("interrupted");
    program.read_until("usblease # ");
    program.type("quit\r");
    ck_assert_int_eq(program.wait().exit_code, 0);
  }
  const std::string path = test_directory() + "/usblease/history";
  struct stat info {};
  ck_assert_int_eq(stat(path.c_str(), &info), 0);
  ck_assert_uint_eq(info.st_mode & 0777U, 0600);
  Program again({"-q"}, "", Program::Streams::kTerminal);
  again.read_until("usblease # ");
  again.type("\x1b[A\x1b[A\x1b[A");  // up: quit, attach, version
  again.read_until("version");
  again.type("\r");
  again.read_until("usblease 0.");
  again.read_until("usblease # ");
  again.wait_editing();
  again.type("\x04");
  ck_assert_int_eq(again.wait().exit_code, 0);
}
END_TEST

std::string completed(std::vector<std::string> words, void (*answer)(FakeDaemon&)) {
  words.insert(words.begin(), {"--complete", "-c", test_socket()});
  FakeDaemon daemon;
  Program program(words);
  if (answer != nullptr) answer(daemon);
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  check_text(outcome.err, "");
  return outcome.out;
}

START_TEST(completion_knows_verbs_options_and_names) {
  check_text(completed({"un"}, nullptr), "unassign\n");
  check_text(completed({"host", ""}, nullptr), "declare-dead\ndrain\ninfo\ninstall-qemu-module\nundrain\n");
  check_text(completed({"cluster", "re"}, nullptr), "remove\nrepair\nrestore\n");
  check_text(completed({"help", "host", "i"}, nullptr), "info\ninstall-qemu-module\n");
  check_text(completed({"extend", "dongle", "--f"}, nullptr), "--for\n");
  check_text(completed({"extend", "dongle", "--for", ""}, nullptr), "");
  check_text(completed({"revoke", "--reason", "x", "d"}, answer_devices), "dongle\ndonkey\n");
  check_text(completed({"attach", ""}, answer_guests), "my guest\nvm1\nvm2\n");
  check_text(completed({"attach", "--wait", "5", "vm1", "dongle", ""}, answer_devices), "donkey\nhsm\n");
  check_text(completed({"info", "dongle", ""}, nullptr), "");
  check_text(completed({"frob", ""}, nullptr), "");
}
END_TEST

START_TEST(completion_without_a_daemon_is_silent) {
  Program program({"--complete", "-c", "/nonexistent/sock", "info", ""});
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  check_text(outcome.out + outcome.err, "");
}
END_TEST

START_TEST(bash_completes_through_the_daemon) {
  FakeDaemon daemon;
  const std::string script =
      std::string("source ") + USBLEASE_COMPLETION + "; COMP_WORDS=(" + USBLEASE_PROGRAM + " -c " + test_socket() +
      " detach ''); COMP_CWORD=4; _usblease; printf '%s|' \"${COMPREPLY[@]}\" > " + test_directory() + "/reply";
  FILE* bash = popen("exec /bin/bash", "w");
  ck_assert_ptr_nonnull(bash);
  fputs(script.c_str(), bash);
  std::thread running([bash] { pclose(bash); });  // the end of its input, then of itself
  answer_guests(daemon);
  running.join();
  std::ifstream file(test_directory() + "/reply");
  std::stringstream reply;
  reply << file.rdbuf();
  check_text(reply.str(), "my\\ guest|vm1|vm2|");
}
END_TEST

}  // namespace

TCase* shell_cases() {
  TCase* cases = tcase_create("shell");
  tcase_set_timeout(cases, 60);
  tcase_add_unchecked_fixture(cases, make_test_directory, remove_test_directory);
  tcase_add_test(cases, a_pipe_is_read_line_by_line);
  tcase_add_test(cases, the_exit_code_of_a_pipe_is_the_last_ones);
  tcase_add_test(cases, global_options_hold_for_every_command);
  tcase_add_test(cases, one_argument_can_be_a_line);
  tcase_add_test(cases, ctrl_c_ends_a_pipe);
  tcase_add_test(cases, a_terminal_has_a_prompt_completion_and_history);
  tcase_add_test(cases, completion_knows_verbs_options_and_names);
  tcase_add_test(cases, completion_without_a_daemon_is_silent);
  tcase_add_test(cases, bash_completes_through_the_daemon);
  return cases;
}
