// What a host may say to the coordinator, and the members file.
#include "daemon/cluster/members.h"
#include "daemon/cluster/peer_rules.h"
#include "tests/unit/cluster/cluster_world.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using namespace usblease::cluster;
using namespace usblease::cluster_test;

namespace {

START_TEST(of_itself_everything) {
  for (command::Command command : {register_host("p"), report_device("p", "dongle"), acquire("p", "r", "dongle"),
                                   release(acquire("p", "r", "dongle")), confirm_fenced("p", "dongle", 1)}) {
    const auto refused = restrict_command("p", nullptr, command);
    ck_assert_msg(!refused, "%s", refused ? refused->c_str() : "");
    ck_assert(restrict_command("q", nullptr, command).has_value());
  }
}
END_TEST

START_TEST(principals_are_of_the_sending_host) {
  command::Command command;
  command.mutable_revoke()->set_device("dongle");
  command.mutable_revoke()->set_principal("root");
  ck_assert(!restrict_command("p", nullptr, command));
  ck_assert_text_eq(command.revoke().principal(), "root@p");
  ck_assert(!restrict_command("p", nullptr, command));
  ck_assert_text_eq(command.revoke().principal(), "root@p");
  ck_assert(restrict_command("q", nullptr, command).has_value());
  command.mutable_revoke()->set_principal("root@q@p");
  ck_assert(!restrict_command("p", nullptr, command));
  command.mutable_revoke()->clear_principal();
  ck_assert(!restrict_command("p", nullptr, command));
  ck_assert_text_eq(command.revoke().principal(), "");
}
END_TEST

START_TEST(what_the_coordinator_decides_no_host_says) {
  command::Command command;
  command.mutable_host_gone();
  ck_assert(restrict_command("p", nullptr, command).has_value());
  command.mutable_grace_over();
  ck_assert(restrict_command("p", nullptr, command).has_value());
  command.mutable_until_over();
  ck_assert(restrict_command("p", nullptr, command).has_value());
  command.mutable_rotate_certificates();
  ck_assert(restrict_command("p", nullptr, command).has_value());
  // That a certificate was made; that it is in use is for its host to say.
  command.mutable_note_certificate()->set_host_id("p");
  ck_assert(restrict_command("p", nullptr, command).has_value());
  command.mutable_note_certificate()->set_in_use(true);
  ck_assert(!restrict_command("p", nullptr, command));
  ck_assert(restrict_command("q", nullptr, command).has_value());
  command.mutable_note_refusals()->set_host_id("p");
  ck_assert(!restrict_command("p", nullptr, command));
  ck_assert(restrict_command("q", nullptr, command).has_value());
  command.mutable_restore();
  ck_assert(restrict_command("p", nullptr, command).has_value());
  command.Clear();
  ck_assert(restrict_command("p", nullptr, command).has_value());
}
END_TEST

START_TEST(a_request_is_cancelled_by_its_own_host) {
  lease::State state;
  state.requests["r1"].mutable_start()->set_host_id("p");
  command::Command command;
  command.mutable_cancel_request()->set_request_id("r1");
  ck_assert(!restrict_command("p", &state, command));
  ck_assert(restrict_command("q", &state, command).has_value());
  command.mutable_cancel_request()->set_request_id("unknown");
  ck_assert(!restrict_command("q", &state, command));
}
END_TEST

START_TEST(renewals_and_forwards_are_bounded) {
  peer::Renewal renewal;
  renewal.set_host_id("p");
  ck_assert(!restrict_renewal("p", renewal));
  ck_assert(restrict_renewal("q", renewal).has_value());
  for (int i = 0; i < 4097; ++i) renewal.add_armed();
  ck_assert(restrict_renewal("p", renewal).has_value());
  peer::Forward forward;
  ck_assert(restrict_forward(forward).has_value());
  forward.set_caller("root");
  ck_assert(!restrict_forward(forward));
  forward.set_caller("root@q");
  ck_assert(restrict_forward(forward).has_value());
  forward.set_caller(std::string(65, 'x'));
  ck_assert(restrict_forward(forward).has_value());
}
END_TEST

START_TEST(members_are_read_as_they_were_written) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.file("members");
  const auto absent = load_members(path);
  ck_assert_ok(absent);
  ck_assert(!absent->has_value());
  Members members;
  members.cluster_id = "c1";
  members.hosts.push_back({"a", {"10.0.0.1:7471", "[fe80::1]:7471"}, true, "https://10.0.0.1:7472"});
  members.hosts.push_back({"p", {"p.example:7471"}, false, ""});
  ck_assert_ok(save_members(path, members));
  const auto read = load_members(path);
  ck_assert_ok(read);
  ck_assert(**read == members);
  ck_assert_uint_eq((*read)->candidates().size(), 1);
}
END_TEST

START_TEST(members_that_make_no_sense_are_refused) {
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {"", "id= is absent"},
      {"[cluster]\nid=c 1\n", "id= is absent or no cluster id"},
      {"[cluster]\nid=c1\n[hosts]\n", "no such group"},
      {"[cluster]\nid=c1\n[host -a]\naddresses=x:1\n", "no host id"},
      {"[cluster]\nid=c1\n[host a]\n", "addresses= needs"},
      {"[cluster]\nid=c1\n[host a]\naddresses=here\n", "is not HOST:PORT"},
      {"not a key file", "m:"},
  };
  for (const auto& row : cases) ck_assert_fails(parse_members(row.text, "m"), ErrorCode::kBadInput, row.why);
  std::string six = "[cluster]\nid=c1\n";
  for (int i = 0; i < 6; ++i) six += "[host h" + std::to_string(i) + "]\naddresses=x:1\ncandidate=true\n";
  ck_assert_fails(parse_members(six, "m"), ErrorCode::kBadInput, "more than 5");
}
END_TEST

Suite* peer_rules_suite() {
  Suite* suite = suite_create("peer rules");
  TCase* tcase = tcase_create("peer rules");
  for (const TTest* test :
       {of_itself_everything, principals_are_of_the_sending_host, what_the_coordinator_decides_no_host_says,
        a_request_is_cancelled_by_its_own_host, renewals_and_forwards_are_bounded,
        members_are_read_as_they_were_written, members_that_make_no_sense_are_refused})
    tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  return suite;
}

}  // namespace

int main() { return usblease::test::run_suite(peer_rules_suite()); }
