// The verbs of the cluster and of its hosts: what they ask, what they print, and the backup's file.
#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "cli/backup_file.h"
#include "tests/unit/cli/cases.h"
#include "tests/unit/cli/program.h"

namespace {

using namespace usblease;

void ends_well(const Exchange& exchange) {
  ck_assert_msg(exchange.outcome.exit_code == 0, "exit %d: %s", exchange.outcome.exit_code,
                exchange.outcome.err.c_str());
  check_text(exchange.outcome.err, "");
}

START_TEST(status_shows_hosts_and_store_members) {
  api::ServerFrame reply;
  auto& cluster = *reply.mutable_cluster_status();
  cluster.mutable_status()->set_cluster_id("c1");
  cluster.mutable_status()->set_coordinator("h1");
  cluster.mutable_status()->set_term(3);
  cluster.mutable_status()->set_store("etcd");
  cluster.mutable_status()->set_store_health("ok");
  cluster.set_disk_free_bytes(12'340'000'000);
  cluster.set_disk_size_bytes(20'000'000'000);
  cluster.set_clock_synchronized(true);
  cluster.set_record_format(1);
  cluster.set_peer_version(1);
  auto& h1 = *cluster.add_hosts();
  h1.mutable_host()->set_id("h1");
  h1.mutable_host()->set_boot_id("b");
  h1.mutable_host()->set_version("0.1.0");
  h1.set_live(true);
  h1.set_coordinator(true);
  h1.set_homed_devices(2);
  h1.set_leases(1);
  h1.mutable_member()->add_addresses("192.0.2.1:7471");
  h1.mutable_member()->mutable_store()->set_role(record::STORE_ROLE_VOTER);
  auto& h2 = *cluster.add_hosts();
  h1.mutable_host()->set_record_format(2);
  auto& old = *cluster.add_hosts();
  old.mutable_host()->set_id("h0");
  old.mutable_host()->set_boot_id("b");
  old.mutable_host()->set_record_format(1);
  h2.mutable_host()->set_id("h2");
  h2.mutable_member()->set_standing(record::STANDING_JOINED);
  h2.mutable_member()->mutable_store()->set_role(record::STORE_ROLE_LEARNER);
  auto& h3 = *cluster.add_hosts();
  h3.mutable_host()->set_id("h3\x1b");
  h3.mutable_member()->set_standing(record::STANDING_REMOVED);
  auto& member = *cluster.add_store_members();
  member.set_host_id("h1");
  member.set_reachable(true);
  member.set_leader(true);
  member.set_version("3.4.23");
  member.set_revision(77);
  member.set_size_bytes(20'480);
  const auto shown = exchange({"cluster", "status"}, reply);
  ends_well(shown);
  ck_assert(shown.request.has_cluster_status());
  ck_assert(shown.outcome.out.find("record format 1, peer protocol 1; still older: h0\n") != std::string::npos);
  check_text(shown.outcome.out.substr(shown.outcome.out.find("Disk")),
             "Disk:              12.3 GB of 20.0 GB free\n"
             "Time of day:       synchronized\n"
             "\n"
             " Host     State        Role                 Devices   Leases   Version   Address\n"
             "----------------------------------------------------------------------------------------\n"
             " h1       up           coordinator, store   2         1        0.1.0     192.0.2.1:7471\n"
             " h2       never seen   learner              0         0        -         -\n"
             " h0       gone         plain                0         0        -         -\n"
             " h3\\x1B   -            removed              0         0        -         -\n"
             "\n"
             " Store member   State   Role     Version   Revision   Size    Trouble\n"
             "----------------------------------------------------------------------\n"
             " h1             up      leader   3.4.23    77         20 kB   -\n");
}
END_TEST

START_TEST(dangerous_verbs_want_their_word) {
  for (const auto& [words, missing] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"cluster", "repair"}, "--new-epoch"}, {{"host", "declare-dead", "h2"}, "--i-have-powered-it-off"}}) {
    Program program(words);
    const auto outcome = program.wait();
    ck_assert_int_eq(outcome.exit_code, 2);
    ck_assert_msg(outcome.err.find(missing) != std::string::npos, "%s", outcome.err.c_str());
  }
  api::ServerFrame reply;
  reply.mutable_cluster_repair()->set_epoch(1'700'000'001);
  reply.mutable_cluster_repair()->set_leases_left(2);
  const auto repaired = exchange({"cluster", "repair", "--new-epoch"}, reply);
  ends_well(repaired);
  check_text(repaired.outcome.out,
             "epoch 1700000001 has begun; 2 lease(s) are being fenced, then devices are granted again\n");
  api::ServerFrame dead;
  dead.mutable_declare_dead()->set_boot_id("b7");
  const auto declared = exchange({"host", "declare-dead", "h2", "--i-have-powered-it-off"}, dead);
  ends_well(declared);
  check_text(declared.request.declare_dead().host_id(), "h2");
  check_text(declared.outcome.out, "h2 is declared dead: boot b7 is over for good, and what it held is free\n");
}
END_TEST

START_TEST(drain_and_undrain) {
  api::ServerFrame reply;
  reply.mutable_drain()->set_leases_left(2);
  const auto drained = exchange({"host", "drain", "h2", "--grace", "1m"}, reply);
  ends_well(drained);
  ck_assert_uint_eq(drained.request.drain().grace_ms(), 60'000);
  ck_assert(!drained.request.drain().undo());
  ck_assert(drained.outcome.out.find("2 lease(s) left") != std::string::npos);
  reply.mutable_drain()->set_leases_left(0);
  ck_assert(exchange({"host", "drain", "h2"}, reply).outcome.out.find("h2 is empty") == 0);
  const auto undone = exchange({"host", "undrain", "h2"}, reply);
  ck_assert(undone.request.drain().undo());
}
END_TEST

START_TEST(a_token_is_what_to_type) {
  api::ServerFrame reply;
  reply.mutable_cluster_add()->set_token("CgT0ken");
  reply.mutable_cluster_add()->set_expires_unix_s(1'700'000'000);
  const auto added = exchange({"cluster", "add", "h2", "--valid", "2h"}, reply);
  ends_well(added);
  ck_assert_uint_eq(added.request.cluster_add().valid_s(), 7'200);
  check_text(added.outcome.out, "# On h2, once, until 2023-11-14 22:13:20:\nusblease cluster join CgT0ken\n");
  check_text(exchange({"-q", "cluster", "add", "h2"}, reply).outcome.out, "CgT0ken\n");
  api::ServerFrame joined;
  joined.mutable_cluster_join()->set_host_id("h2");
  joined.mutable_cluster_join()->set_cluster_id("c1");
  joined.mutable_cluster_join()->set_store_member(true);
  joined.mutable_cluster_join()->set_archived("/a");
  const auto done = exchange({"cluster", "join", "CgT0ken"}, joined);
  check_text(done.request.cluster_join().token(), "CgT0ken");
  check_text(done.outcome.out,
             "h2 has joined the cluster c1, with a store member; what its own store held is kept in /a\n");
}
END_TEST

START_TEST(init_transfer_and_remove) {
  api::ServerFrame reply;
  reply.mutable_cluster_init()->set_host_id("h1");
  const auto made = exchange({"cluster", "init", "--address", "192.0.2.1:7471,h1.example:7471"}, reply);
  ends_well(made);
  ck_assert_int_eq(made.request.cluster_init().addresses_size(), 2);
  check_text(made.request.cluster_init().addresses(1), "h1.example:7471");
  for (const char* wrong : {"nocolon", "a:1,,b:2"}) {
    Program program({"cluster", "init", "--address", wrong});
    ck_assert_int_eq(program.wait().exit_code, 2);
  }
  reply.mutable_cluster_transfer();
  check_text(exchange({"cluster", "transfer", "h2"}, reply).outcome.out, "h2 is the coordinator now\n");
  reply.mutable_cluster_remove()->set_leases_left(1);
  ck_assert(exchange({"cluster", "remove", "h2"}, reply).outcome.out.find("declare-dead h2") != std::string::npos);
  Program program({"cluster", "remove", "-h2/"});
  ck_assert_int_eq(program.wait().exit_code, 2);
}
END_TEST

// --- backups ---------------------------------------------------------------------------------------

api::ServerFrame backup_reply() {
  api::ServerFrame reply;
  auto& backup = *reply.mutable_backup();
  backup.mutable_header()->set_revision(5);
  record::Device device;
  device.set_name("dongle");
  device.set_last_token(7);
  record::Host host;
  host.set_id("h1");
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"device/dongle", device.SerializeAsString()}, {"host/h1", host.SerializeAsString()}, {"meta", "x"}}) {
    auto& record = *backup.add_records();
    record.set_key(key);
    record.set_value(value);
  }
  backup.mutable_header()->set_records(3);
  return reply;
}

START_TEST(a_backup_is_written_once_and_for_its_owner_only) {
  const std::string path = test_directory() + "/backup";
  const auto made = exchange({"cluster", "backup", path}, backup_reply());
  ends_well(made);
  struct stat info {};
  ck_assert_int_eq(stat(path.c_str(), &info), 0);
  ck_assert_uint_eq(info.st_mode & 0777, 0600);
  const auto read = cli::read_backup_file(path);
  ck_assert_msg(read.has_value(), "%s", read ? "" : read.error().message.c_str());
  ck_assert_int_eq(read->records_size(), 3);
  const auto again = exchange({"cluster", "backup", path}, backup_reply());
  ck_assert_int_eq(again.outcome.exit_code, 3);
  unlink(path.c_str());
}
END_TEST

START_TEST(a_restore_sends_what_counts) {
  const std::string path = test_directory() + "/backup";
  ck_assert(cli::write_backup_file(path, backup_reply().backup()).has_value());
  FakeDaemon daemon;
  Program program({"cluster", "restore", path});
  Peer first = daemon.accept();
  const auto begin = first.receive();
  ck_assert(begin.restore_part().begin() && !begin.restore_part().end());
  ck_assert_int_eq(begin.restore_part().devices_size(), 1);
  ck_assert_int_eq(begin.restore_part().hosts_size(), 1);
  api::ServerFrame reply;
  reply.mutable_restore_part();
  first.finish(begin, reply);
  Peer second = daemon.accept();
  const auto end = second.receive();
  ck_assert(end.restore_part().end());
  reply.mutable_restore_part()->set_epoch(9);
  reply.mutable_restore_part()->set_leases_left(1);
  second.finish(end, reply);
  const auto outcome = program.wait();
  ck_assert_int_eq(outcome.exit_code, 0);
  ck_assert(outcome.out.find("epoch 9 has begun; 1 lease(s)") != std::string::npos);
  unlink(path.c_str());
}
END_TEST

START_TEST(a_file_that_is_no_backup) {
  const std::string path = test_directory() + "/backup";
  ck_assert(cli::write_backup_file(path, backup_reply().backup()).has_value());
  std::ifstream in(path, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto refused = [&](const std::string& content, const std::string& why) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    Program program({"cluster", "restore", path});
    const auto outcome = program.wait();
    ck_assert_int_eq(outcome.exit_code, 2);
    ck_assert_msg(outcome.err.find(why) != std::string::npos, "%s", outcome.err.c_str());
  };
  refused("", "is not a backup");
  refused("usblease-backup 9\nfuture", "newer");
  refused(good.substr(0, good.size() - 1), "was cut or changed");
  std::string flipped = good;
  flipped[30] = static_cast<char>(flipped[30] ^ 1);
  refused(flipped, "was cut or changed");
  unlink(path.c_str());
  Program absent({"cluster", "restore", path});
  ck_assert_int_eq(absent.wait().exit_code, 6);
}
END_TEST

}  // namespace

TCase* cluster_cases() {
  TCase* cases = tcase_create("cluster");
  tcase_set_timeout(cases, 60);
  tcase_add_unchecked_fixture(cases, make_test_directory, remove_test_directory);
  tcase_add_test(cases, status_shows_hosts_and_store_members);
  tcase_add_test(cases, dangerous_verbs_want_their_word);
  tcase_add_test(cases, drain_and_undrain);
  tcase_add_test(cases, a_token_is_what_to_type);
  tcase_add_test(cases, init_transfer_and_remove);
  tcase_add_test(cases, a_backup_is_written_once_and_for_its_owner_only);
  tcase_add_test(cases, a_restore_sends_what_counts);
  tcase_add_test(cases, a_file_that_is_no_backup);
  return cases;
}
