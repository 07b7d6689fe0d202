// Each verb: what it asks, what it prints, and its JSON.
#include "tests/unit/cli/cases.h"
#include "tests/unit/cli/program.h"

namespace {

using namespace usblease;

constexpr std::uint64_t kGranted = 1'700'000'000;  // 2023-11-14 22:13:20 UTC
constexpr std::uint64_t kUntil = kGranted + 7200;

record::Device dongle() {
  record::Device device;
  device.set_name("dongle");
  device.set_last_token(17);
  auto* lease = device.mutable_lease();
  lease->set_token(17);
  lease->set_guest_name("vm1");
  lease->set_phase(record::PHASE_GRANTED);
  lease->set_granted_unix_s(kGranted);
  lease->set_until_unix_s(kUntil);
  lease->set_principal("root@host1");
  lease->mutable_start()->set_guest_uuid("3e2f2b1e-4bb4-4d5f-9f0f-0d7c8a8b9c10");
  lease->mutable_start()->set_host_id("host1");
  auto* home = device.add_homes();
  home->set_present(true);
  home->mutable_instance()->set_host_id("host1");
  home->mutable_instance()->set_boot_id("boot");
  home->mutable_instance()->set_counter(4);
  home->mutable_identity()->set_kind(record::DEVICE_KIND_ENDPOINT);
  home->mutable_identity()->set_address("unix:/run/dongle");
  home->mutable_identity()->set_vendor(0x96e);
  home->mutable_identity()->set_product(0x6);
  home->mutable_identity()->set_serial("A\x1b]0;evil\x07");
  device.mutable_policy()->add_guests("vm1");
  device.mutable_policy()->set_until_max_s(86400);
  device.mutable_policy()->set_min_rung(record::RUNG_RELAY);
  return device;
}

record::Request waiting() {
  record::Request request;
  request.set_id("r1");
  request.set_priority(-5);
  request.add_devices("dongle");
  request.add_devices("hsm");
  request.set_guest_name("vm2");
  request.mutable_start()->set_host_id("host2");
  request.set_principal("ann@host2");
  request.set_wait_ms(90'000);
  request.set_queued_unix_s(kGranted + 1);
  return request;
}

api::ServerFrame list_reply() {
  api::ServerFrame reply;
  auto* view = reply.mutable_list_devices()->add_devices();
  *view->mutable_device() = dongle();
  view->set_state("granted");
  view->set_queue_length(2);
  auto* other = reply.mutable_list_devices()->add_devices();
  other->mutable_device()->set_name("hsm");
  other->set_state("absent");
  return reply;
}

void ends_well(const Exchange& exchange) {
  ck_assert_msg(exchange.outcome.exit_code == 0, "exit %d: %s", exchange.outcome.exit_code,
                exchange.outcome.err.c_str());
  check_text(exchange.outcome.err, "");
}

START_TEST(list_is_a_table) {
  const auto plain = exchange({"list"}, list_reply());
  ends_well(plain);
  ck_assert(plain.request.has_list_devices());
  check_text(plain.outcome.out,
             " Device   State     Guest   Host    Token   Until                 Queue\n"
             "------------------------------------------------------------------------\n"
             " dongle   granted   vm1     host1   17      2023-11-15 00:13:20   2\n"
             " hsm      absent    -       -       -       -                     0\n");
  const auto quiet = exchange({"list", "-q"}, list_reply());
  check_text(quiet.outcome.out,
             " dongle   granted   vm1   host1   17   2023-11-15 00:13:20   2\n"
             " hsm      absent    -     -       -    -                     0\n");
}
END_TEST

START_TEST(list_as_a_tree) {
  api::ServerFrame reply = list_reply();
  auto* view = reply.mutable_list_devices()->add_devices();
  view->mutable_device()->set_name("stick");
  view->set_state("free");
  auto* home = view->mutable_device()->add_homes();
  home->mutable_instance()->set_host_id("host1");
  home->mutable_identity()->set_address("1-2.4");
  home->set_present(true);
  home = view->mutable_device()->add_homes();
  home->mutable_instance()->set_host_id("host2");
  home->mutable_identity()->set_address("3-1");
  const auto tree = exchange({"list", "--tree"}, reply);
  ends_well(tree);
  check_text(tree.outcome.out,
             " host1\n"
             " +- 1-2.4              stick    free      -\n"
             " +- unix:/run/dongle   dongle   granted   vm1\n"
             " host2\n"
             " +- -   stick   absent   -\n"
             " no home\n"
             " +- -   hsm   absent   -\n");
}
END_TEST

START_TEST(list_as_json) {
  api::ServerFrame reply;
  auto* view = reply.mutable_list_devices()->add_devices();
  view->mutable_device()->set_name("hsm");
  view->mutable_device()->set_last_token(9'007'199'254'740'993ULL);
  view->set_state("free");
  const auto json = exchange({"--json", "list"}, reply);
  ends_well(json);
  check_text(json.outcome.out,
             "{\"devices\":[{\"device\":{\"name\":\"hsm\",\"last_token\":\"9007199254740993\",\"homes\":[],\"last_"
             "request_id\":\"\"},"
             "\"queue_length\":0,\"deadline_boottime_ns\":\"0\",\"state\":\"free\",\"isolation_ms\":0}]}\n");
}
END_TEST

START_TEST(info_tells_all) {
  api::ServerFrame reply;
  auto* view = reply.mutable_device_info()->mutable_device();
  *view->mutable_device() = dongle();
  view->set_state("granted");
  view->set_queue_length(1);
  view->set_isolation_ms(10'000);
  view->set_deadline_boottime_ns(1);
  *reply.mutable_device_info()->add_queue() = waiting();
  const auto done = exchange({"info", "dongle"}, reply);
  ends_well(done);
  check_text(done.request.device_info().device(), "dongle");
  check_text(done.outcome.out,
             "Device:          dongle\n"
             "State:           granted\n"
             "Home:            host1\n"
             "Instance:        4 of boot boot\n"
             "Kind:            usbredir endpoint\n"
             "Address:         unix:/run/dongle\n"
             "USB id:          096e:0006\n"
             "Serial:          A\\x1B]0;evil\\x07\n"
             "Guest:           vm1\n"
             "Guest UUID:      3e2f2b1e-4bb4-4d5f-9f0f-0d7c8a8b9c10\n"
             "Guest's host:    host1\n"
             "Token:           17\n"
             "Phase:           granted\n"
             "Granted:         2023-11-14 22:13:20\n"
             "Until:           2023-11-15 00:13:20\n"
             "Asked for by:    root@host1\n"
             "Deadline:        passed: the device has stopped\n"
             "Last token:      17\n"
             "Allowed guests:  vm1\n"
             "Longest lease:   1d\n"
             "Isolation:       10s\n"
             "Weakest fence:   relay\n"
             "Roams:           no\n"
             "Queue:           1\n"
             "\n"
             " Place   Guest   Host    Priority   Devices      Since                 Waits for   Asked by\n"
             "---------------------------------------------------------------------------------------------\n"
             " 1       vm2     host2   -5         dongle,hsm   2023-11-14 22:13:21   1m30s       ann@host2\n");
}
END_TEST

START_TEST(queue_is_a_table) {
  api::ServerFrame reply;
  *reply.mutable_queue()->add_requests() = waiting();
  const auto done = exchange({"-q", "queue", "dongle"}, reply);
  ends_well(done);
  check_text(done.request.queue().device(), "dongle");
  check_text(done.outcome.out, " 1   vm2   host2   -5   dongle,hsm   2023-11-14 22:13:21   1m30s   ann@host2\n");
}
END_TEST

START_TEST(detach_gives_back) {
  api::ServerFrame reply;
  reply.mutable_detach()->set_token(17);
  const auto done = exchange({"detach", "my\nguest", "dongle"}, reply);
  ends_well(done);
  check_text(done.request.detach().guest(), "my\nguest");
  check_text(done.request.detach().device(), "dongle");
  check_text(done.outcome.out, "dongle detached from my\\x0Aguest; token 17 has ended\n");
  check_text(exchange({"detach", "vm1", "dongle", "-q"}, reply).outcome.out, "");
  check_text(exchange({"detach", "vm1", "dongle", "-q", "--json"}, reply).outcome.out, "{\"token\":\"17\"}\n");
}
END_TEST

START_TEST(assign_and_unassign_write_metadata) {
  api::ServerFrame reply;
  reply.mutable_assign()->set_changed(true);
  reply.mutable_assign()->set_running(true);
  const auto done = exchange({"assign", "vm1", "dongle", "--optional", "--wait", "30"}, reply);
  ends_well(done);
  const auto& assign = done.request.assign();
  ck_assert(!assign.required() && !assign.remove() && assign.wait_s() == 30);
  check_text(done.outcome.out,
             "dongle assigned to vm1; it is leased at each start\n"
             "vm1 is running: to have it now, `usblease attach vm1 dongle`\n");
  const auto undone = exchange({"unassign", "vm1", "dongle"}, reply);
  ends_well(undone);
  ck_assert(undone.request.assign().remove());
  check_text(undone.outcome.out,
             "dongle is no longer assigned to vm1\n"
             "vm1 is running and keeps what it has: to end that, `usblease detach vm1 dongle`\n");
  reply.mutable_assign()->set_changed(false);
  const auto same = exchange({"assign", "vm1", "dongle"}, reply);
  ck_assert(same.request.assign().required());
  check_text(same.outcome.out, "dongle was assigned to vm1 in this way already\n");
  check_text(exchange({"unassign", "vm1", "dongle"}, reply).outcome.out, "dongle was not assigned to vm1\n");
  check_text(exchange({"unassign", "vm1", "dongle", "--json"}, reply).outcome.out,
             "{\"changed\":false,\"running\":true}\n");
}
END_TEST

START_TEST(revoke_and_extend_name_the_token) {
  api::ServerFrame reply;
  reply.mutable_revoke()->set_token(17);
  const auto revoked = exchange({"revoke", "dongle", "--grace", "30", "--reason", "it's needed"}, reply);
  ends_well(revoked);
  check_text(revoked.request.revoke().reason(), "it's needed");
  ck_assert_uint_eq(revoked.request.revoke().grace_ms(), 30'000);
  check_text(revoked.outcome.out, "dongle: token 17 is being revoked; it works for another 30s\n");
  check_text(exchange({"revoke", "dongle", "--reason", "x"}, reply).outcome.out,
             "dongle: token 17 is being revoked now\n");
  reply.mutable_extend()->set_token(17);
  const auto extended = exchange({"extend", "dongle", "--for", "1h30m"}, reply);
  ends_well(extended);
  ck_assert_uint_eq(extended.request.extend().duration_s(), 5400);
  check_text(extended.outcome.out, "dongle: token 17 ends in 1h30m\n");
  check_text(exchange({"extend", "dongle", "--for", "0"}, reply).outcome.out, "dongle: token 17 has no end any more\n");
}
END_TEST

record::Event event(std::uint64_t seq, const char* kind, const char* text) {
  record::Event out;
  out.set_seq(seq);
  out.set_unix_s(kGranted + seq);
  out.set_kind(kind);
  out.set_device("dongle");
  out.set_guest("vm1");
  out.set_token(17);
  out.set_principal("root@host1");
  out.set_text(text);
  return out;
}

START_TEST(events_are_lines) {
  api::ServerFrame reply;
  *reply.mutable_events()->add_events() = event(1, "granted", "");
  *reply.mutable_events()->add_events() = event(2, "revoking", "two\nlines");
  const auto done = exchange({"events", "--limit", "2"}, reply);
  ends_well(done);
  ck_assert(!done.request.events().follow());
  ck_assert_uint_eq(done.request.events().limit(), 2);
  check_text(done.outcome.out,
             "2023-11-14 22:13:21  granted  device dongle  guest vm1  token 17  by root@host1\n"
             "2023-11-14 22:13:22  revoking  device dongle  guest vm1  token 17  by root@host1: two\\x0Alines\n");
}
END_TEST

START_TEST(a_long_list_comes_in_several_frames) {
  FakeDaemon daemon;
  Program program({"events"});
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  api::ServerFrame part;
  part.set_id(request.id());
  part.set_more(true);
  *part.mutable_events()->add_events() = event(1, "granted", "");
  peer.send(part);
  api::ServerFrame last;
  *last.mutable_events()->add_events() = event(2, "released", "");
  peer.finish(request, last);
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  ck_assert_ptr_nonnull(strstr(outcome.out.c_str(), "22:13:21  granted"));
  ck_assert_ptr_nonnull(strstr(outcome.out.c_str(), "22:13:22  released"));
}
END_TEST

START_TEST(follow_prints_as_it_comes_and_ends_with_ctrl_c) {
  FakeDaemon daemon;
  Program program({"events", "--follow", "--json"});
  Peer peer = daemon.accept();
  const auto request = peer.receive();
  ck_assert(request.events().follow());
  for (std::uint64_t seq = 1; seq <= 2; ++seq) {
    api::ServerFrame frame;
    frame.set_id(request.id());
    frame.set_more(true);
    *frame.mutable_events()->add_events() = event(seq, "granted", "");
    peer.send(frame);
  }
  program.wait_output("\"seq\":\"2\"");
  program.interrupt();
  peer.wait_closed();
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 130);
  check_text(outcome.out,
             "{\"seq\":\"1\",\"unix_s\":\"1700000001\",\"kind\":\"granted\",\"device\":\"dongle\",\"guest\":\"vm1\","
             "\"guest_uuid\":\"\",\"host\":\"\",\"token\":\"17\",\"principal\":\"root@host1\",\"text\":\"\"}\n"
             "{\"seq\":\"2\",\"unix_s\":\"1700000002\",\"kind\":\"granted\",\"device\":\"dongle\",\"guest\":\"vm1\","
             "\"guest_uuid\":\"\",\"host\":\"\",\"token\":\"17\",\"principal\":\"root@host1\",\"text\":\"\"}\n");
}
END_TEST

START_TEST(host_info_shows_the_fences) {
  api::ServerFrame reply;
  auto* info = reply.mutable_host_info();
  info->mutable_host()->set_id("host1");
  info->mutable_host()->set_version("0.1.0");
  info->set_libvirt_detail("no such socket");
  info->set_relays(3);
  auto* rung = info->add_rungs();
  rung->set_rung(record::RUNG_RELAY);
  rung->set_available(true);
  info->add_rungs()->set_rung(record::RUNG_KERNEL);
  const auto done = exchange({"host", "info"}, reply);
  ends_well(done);
  ck_assert(done.request.has_host_info());
  check_text(done.outcome.out,
             "Host:          host1\nBoot:          -\nMachine:       -\nVersion:       0.1.0\n"
             "Libvirt:       not connected\nLibvirt says:  no such socket\nRelays:        3\n\n"
             " Rung     Available   Detail\n-----------------------------\n relay    yes         -\n"
             " kernel   no          -\n");
}
END_TEST

START_TEST(status_shows_the_cluster) {
  api::ServerFrame reply;
  auto* status = reply.mutable_status_reply();
  status->set_cluster_id("c1");
  status->set_term(3);
  status->set_store("sqlite:/var/lib/usblease/usblease.db");
  status->set_store_health("ok");
  status->set_behind("device dongle: floor 9, counter 7");
  status->set_ttl_ms(10'000);
  const auto done = exchange({"status"}, reply);
  ends_well(done);
  ck_assert_ptr_nonnull(strstr(done.outcome.out.c_str(), "Coordinator:       none: nothing is granted now\n"));
  ck_assert_ptr_nonnull(strstr(done.outcome.out.c_str(), "Store is behind:   device dongle: floor 9, counter 7\n"));
  ck_assert_ptr_nonnull(strstr(done.outcome.out.c_str(), "Session's ttl:     10s\n"));
}
END_TEST

START_TEST(help_and_version_need_no_daemon) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"help"}, {"help", "host", "info"}, {"version"}, {"-V"}, {"attach", "-h"}}) {
    Program program(arguments);
    const auto outcome = program.wait();
    ck_assert_int_eq(outcome.exit_code, 0);
    ck_assert_str_ne(outcome.out.c_str(), "");
    check_text(outcome.err, "");
  }
  Program unknown({"help", "frob"});
  ck_assert_int_eq(unknown.wait().exit_code, 2);
}
END_TEST

}  // namespace

TCase* verb_cases() {
  TCase* cases = tcase_create("verbs");
  tcase_set_timeout(cases, 60);
  tcase_add_unchecked_fixture(cases, make_test_directory, remove_test_directory);
  tcase_add_test(cases, list_is_a_table);
  tcase_add_test(cases, list_as_a_tree);
  tcase_add_test(cases, list_as_json);
  tcase_add_test(cases, info_tells_all);
  tcase_add_test(cases, queue_is_a_table);
  tcase_add_test(cases, detach_gives_back);
  tcase_add_test(cases, assign_and_unassign_write_metadata);
  tcase_add_test(cases, revoke_and_extend_name_the_token);
  tcase_add_test(cases, events_are_lines);
  tcase_add_test(cases, a_long_list_comes_in_several_frames);
  tcase_add_test(cases, follow_prints_as_it_comes_and_ends_with_ctrl_c);
  tcase_add_test(cases, host_info_shows_the_fences);
  tcase_add_test(cases, status_shows_the_cluster);
  tcase_add_test(cases, help_and_version_need_no_daemon);
  return cases;
}
