// usbleased.conf: every key, and for every mistake the file, the line, the key and what is allowed.
#include <fstream>
#include <set>
#include <sstream>

#include "common/config.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

using std::string_literals::operator""s;

Config good(const std::string& text) {
  auto config = parse_config(text, "x.conf");
  ck_assert_ok(config);
  return *config;
}

START_TEST(nothing_means_the_defaults) {
  for (const std::string& text : {""s, "\n\n"s, "# only a comment\n"s, "[daemon]\n[hook]\n"s}) {
    const Config c = good(text);
    ck_assert(!c.host_id.empty());
    ck_assert_text_eq(c.state_dir, "/var/lib/usblease");
    ck_assert_text_eq(c.socket_path(), "/run/usblease/usbleased.sock");
    ck_assert_text_eq(c.cluster_listen, ":7471");
    ck_assert(c.cluster_advertise.empty() && c.store.endpoints.empty());
    ck_assert_text_eq(c.store.prefix, "/usblease/");
    ck_assert_text_eq(c.act_group, "usblease");
    ck_assert(c.read == ReadAccess::kNobody);
    ck_assert_uint_eq(c.ttl_ms, 10'000);
    ck_assert(c.devices.empty());
    ck_assert(c.relay_path.ends_with("/usblease-relay"));
  }
}
END_TEST

START_TEST(every_key) {
  const Config c = good(
      "[daemon]\nhost_id = node1.example\nstate_dir=/srv/state//\nrun_dir=/srv/run\nlog_level=debug\n"
      "libvirt_uri=test:///default\nlibvirt_run_dir=/srv/libvirt\nrelay_path=/srv/relay\nrelay_user=usb\n"
      "[cluster]\nlisten=[::1]:7000\nadvertise=h1.example:7000, [2001:db8::1]:7001\n"
      "[store]\nendpoints=https://e1:2379,https://e2:2379\nca_file=/ca\ncert_file=/cert\nkey_file=/key\nprefix=/x/\n"
      "[access]\nact_group=operators\nread=everyone\n"
      "[timing]\nttl_ms=9000\nrenewal_ms=3000\ngrace_ms=300\ndrift_ppm=1\n"
      "[hook]\ndeadline_ms=1000\n"
      "[device a]\nendpoint=tcp:[::1]:4000\nguests=web;3E3FCE45-4F53-4FA7-BB32-11F34168B82B\nuntil_max=2h30m\n"
      "isolation=9s\nmin_rung=relay\n"
      "[device b]\r\nusb=0529:0001:HASP 42\r\nisolation=5m\r\nreset=no\r\n");
  ck_assert_text_eq(c.host_id, "node1.example");
  ck_assert_text_eq(c.state_dir, "/srv/state");
  ck_assert_text_eq(c.run_dir, "/srv/run");
  ck_assert(c.log_level == log::Level::kDebug);
  ck_assert_text_eq(c.libvirt_uri, "test:///default");
  ck_assert_text_eq(c.libvirt_run_dir, "/srv/libvirt");
  ck_assert_text_eq(c.relay_path, "/srv/relay");
  ck_assert_text_eq(c.relay_user, "usb");
  ck_assert_text_eq(c.cluster_listen, "[::1]:7000");
  ck_assert((c.cluster_advertise == std::vector<std::string>{"h1.example:7000", "[2001:db8::1]:7001"}));
  ck_assert((c.store.endpoints == std::vector<std::string>{"https://e1:2379", "https://e2:2379"}));
  ck_assert_text_eq(c.store.ca_file + c.store.cert_file + c.store.key_file + c.store.prefix, "/ca/cert/key/x/");
  ck_assert_text_eq(c.act_group, "operators");
  ck_assert(c.read == ReadAccess::kEveryone);
  ck_assert_uint_eq(c.ttl_ms, 9000);
  ck_assert_uint_eq(c.renewal_ms, 3000);
  ck_assert_uint_eq(c.grace_ms, 300);
  ck_assert_uint_eq(c.drift_ppm, 1);
  ck_assert_uint_eq(c.hook_deadline_ms, 1000);
  ck_assert_uint_eq(c.devices.size(), 2);
  const DeviceConfig& a = c.devices[0];
  ck_assert_text_eq(a.name, "a");
  ck_assert_text_eq(a.endpoint, "tcp:[::1]:4000");
  ck_assert((a.guests == std::vector<std::string>{"web", "3e3fce45-4f53-4fa7-bb32-11f34168b82b"}));
  ck_assert_uint_eq(a.until_max_s, 9000);
  ck_assert_uint_eq(a.isolation_ms, 9000);
  ck_assert(a.min_rung == Rung::kRelay);
  const DeviceConfig& b = c.devices[1];
  ck_assert(b.usb.has_value());
  ck_assert_uint_eq(b.usb->vendor, 0x0529);
  ck_assert_uint_eq(b.usb->product, 1);
  ck_assert_text_eq(b.usb->serial, "HASP 42");
  ck_assert_uint_eq(b.isolation_ms, 300'000);
  ck_assert(b.min_rung == Rung::kNone);
  ck_assert(!b.reset && c.devices[0].reset);
}
END_TEST

START_TEST(a_profile_and_single_keys) {
  Config c = good("[timing]\nprofile=fast\n");
  ck_assert_uint_eq(c.ttl_ms, 1'000);
  ck_assert_uint_eq(c.renewal_ms, 200);
  ck_assert_uint_eq(c.grace_ms, 300);
  c = good("[timing]\nttl_ms=2000\nprofile=fast\n");
  ck_assert_uint_eq(c.ttl_ms, 2'000);
  ck_assert_uint_eq(c.renewal_ms, 200);
  c = good("[timing]\nprofile=default\n");
  ck_assert_uint_eq(c.ttl_ms, 10'000);
}
END_TEST

START_TEST(every_rung_has_a_name) {
  for (const char* name : {"none", "admission", "relay", "qemu", "kernel", "unbind", "destroy", "watchdog"}) {
    const Config c = good("[device d]\nusb=0001:0002\nmin_rung="s + name + "\n");
    ck_assert_text_eq(rung_name(c.devices[0].min_rung), name);
  }
}
END_TEST

const struct {
  std::string text;
  const char* message;
} kBad[] = {
    // Not a key file.
    {"key=1\n", "x.conf:1: the first line that is no comment must be a [group]"},
    {"[daemon]\n\nhost_id\n", "x.conf:3: \"host_id\" is not key=value, [group] or # comment"},
    {"[daemon]\n= 3\n", "x.conf:2: \"= 3\" is not key=value, [group] or # comment"},
    {"[daemon\n", "x.conf:1: a group is written as [NAME]"},
    {"[]\n", "x.conf:1: a group is written as [NAME]"},
    {"[daemon] x\n", "x.conf:1: a group is written as [NAME]"},
    {"[dae\tmon]\n", "x.conf:1: a group is written as [NAME]"},
    {"[daemon]\nhost_id=a\0b\n"s, "x.conf:2: this line holds a NUL byte"},
    {"[daemon]\n# x\nhost_id=\xff\n", "x.conf:3: [daemon] host_id: "},
    {"[daemon]\nlibvirt_uri=a\\qb\n", "x.conf:2: [daemon] libvirt_uri: "},
    {"[daemon]\nhost_id[de]=x\n", "x.conf:2: [daemon] host_id[de]: a key consists of a-z 0-9 and _"},
    // Unknown or given twice.
    {"\n[demon]\n",
     "x.conf:2: [demon]: no such group; allowed are: daemon, cluster, store, access, timing, hook, device NAME"},
    {"[device]\n", "x.conf:1: [device]: no such group"},
    {"[daemon]\nhostid=x\n", "x.conf:2: [daemon] hostid: no such key; allowed here are: host_id, libvirt_run_dir"},
    {"[device d]\nserial=x\n",
     "x.conf:2: [device d] serial: no such key; allowed here are: endpoint, guests, isolation, min_rung, port, "
     "reset, until_max, usb"},
    {"[hook]\n[daemon]\n[hook]\n", "x.conf:3: [hook]: this group is given twice; join the two"},
    {"[device d]\nusb=0001:0002\n[device d]\n", "x.conf:3: [device d]: this group is given twice; join the two"},
    {"[daemon]\nhost_id=a\nhost_id=b\n", "x.conf:3: [daemon] host_id: this key is given twice; keep one"},
    // [daemon]
    {"[daemon]\nhost_id=\n", "x.conf:2: [daemon] host_id: 1 to 64 of A-Z a-z 0-9 . _ - are allowed"},
    {"[daemon]\nhost_id=a/b\n", "x.conf:2: [daemon] host_id: 1 to 64 of"},
    {"[daemon]\nstate_dir=state\n", "x.conf:2: [daemon] state_dir: an absolute path is needed"},
    {"[daemon]\nrun_dir=\n", "x.conf:2: [daemon] run_dir: an absolute path is needed"},
    {"[daemon]\nhost_id=a\nrun_dir=/1234567890123456789012345678901234567890123456\n",
     "x.conf:3: [daemon] run_dir: at most 46 characters with these device names"},
    {"[daemon]\nlibvirt_run_dir=x\n", "x.conf:2: [daemon] libvirt_run_dir: an absolute path"},
    {"[daemon]\nrelay_path=usblease-relay\n", "x.conf:2: [daemon] relay_path: an absolute path"},
    {"[daemon]\nrelay_user=\n", "x.conf:2: [daemon] relay_user: 1 to 255 characters"},
    {"[daemon]\nlibvirt_uri=\n", "x.conf:2: [daemon] libvirt_uri: 1 to 255 characters"},
    {"[daemon]\nlog_level=loud\n", "x.conf:2: [daemon] log_level: allowed are: debug, info, warning, error"},
    // [access]
    {"[access]\nact_group=\n", "x.conf:2: [access] act_group: 1 to 255 characters"},
    {"[access]\nread=all\n", "x.conf:2: [access] read: allowed are: nobody, everyone"},
    // [timing]
    {"[timing]\nprofile=slow\n", "x.conf:2: [timing] profile: allowed are: default, fast"},
    {"[timing]\nttl_ms=499\n", "x.conf:2: [timing] ttl_ms: a whole number from 500 to 600000 is needed"},
    {"[timing]\nttl_ms=10s\n", "x.conf:2: [timing] ttl_ms: a whole number"},
    {"[timing]\nttl_ms=-1\n", "x.conf:2: [timing] ttl_ms: a whole number"},
    {"[timing]\nttl_ms=99999999999999999999\n", "x.conf:2: [timing] ttl_ms: a whole number"},
    {"[timing]\nttl_ms=\n", "x.conf:2: [timing] ttl_ms: a whole number"},
    {"[timing]\nrenewal_ms=49\n", "x.conf:2: [timing] renewal_ms: a whole number from 50 to 120000"},
    {"[timing]\ngrace_ms=299\n", "x.conf:2: [timing] grace_ms: a whole number from 300 to 60000"},
    {"[timing]\ndrift_ppm=0\n", "x.conf:2: [timing] drift_ppm: a whole number from 1 to 50000"},
    {"[timing]\nrenewal_ms=1000\nttl_ms=2999\n", "x.conf:3: [timing] ttl_ms: at least 3 × renewal_ms is needed"},
    {"[hook]\n[timing]\nrenewal_ms=5000\n", "x.conf:2: [timing] ttl_ms: at least 3 × renewal_ms is needed"},
    // [cluster], [store]
    {"[cluster]\nlisten=7471\n", "x.conf:2: [cluster] listen: write ADDRESS:PORT, [IPV6]:PORT or :PORT"},
    {"[cluster]\nlisten=::1:7471\n", "x.conf:2: [cluster] listen: write"},
    {"[cluster]\nlisten=:0\n", "x.conf:2: [cluster] listen: write"},
    {"[cluster]\nadvertise=:7471\n", "x.conf:2: [cluster] advertise: write HOST:PORT"},
    {"[cluster]\nadvertise=a:1,,b:1\n", "x.conf:2: [cluster] advertise: write HOST:PORT"},
    {"[cluster]\nadvertise=\n", "x.conf:2: [cluster] advertise: 1 to 8 addresses are allowed"},
    {"[store]\nendpoints=http://e:1\n", "x.conf:2: [store] endpoints: write https://HOST:PORT"},
    {"[store]\nendpoints=https://e:1\nca_file=/a\n", "x.conf:2: [store] endpoints: ca_file=, cert_file= and key_file="},
    {"[store]\nprefix=usblease\n", "x.conf:2: [store] prefix: 2 to 128 characters"},
    // [hook]
    {"[hook]\ndeadline_ms=999\n", "x.conf:2: [hook] deadline_ms: a whole number from 1000 to 600000"},
    // [device NAME]
    {"[device A]\n", "x.conf:1: [device A]: a device name is 1 to 48 of a-z 0-9 _ -"},
    {"[device  d]\n", "x.conf:1: [device  d]: a device name"},
    {"[device d]\n", "x.conf:1: [device d]: exactly one of endpoint= and usb= is needed"},
    {"[device d]\nusb=0001:0002\nendpoint=unix:/a\n", "x.conf:1: [device d]: exactly one of endpoint= and usb="},
    {"[device d]\nendpoint=/a\n", "x.conf:2: [device d] endpoint: write unix:/absolute/path or tcp:HOST:PORT"},
    {"[device d]\nendpoint=unix:a\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nendpoint=tcp:host\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nendpoint=tcp::1\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nendpoint=tcp:host:0\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nendpoint=tcp:host:65536\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nendpoint=tcp:host:1x\n", "x.conf:2: [device d] endpoint: write"},
    {"[device d]\nusb=529:1\n", "x.conf:2: [device d] usb: write VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL"},
    {"[device d]\nusb=0529:000g\n", "x.conf:2: [device d] usb: write"},
    {"[device d]\nusb=0529:0001:\n", "x.conf:2: [device d] usb: write"},
    {"[device d]\nusb=0529:00012\n", "x.conf:2: [device d] usb: write"},
    {"[device d]\nusb=+529:0001\n", "x.conf:2: [device d] usb: write"},
    {"[device d]\nusb=-529:0001\n", "x.conf:2: [device d] usb: write"},
    {"[device d]\nusb=0001:0002\nguests=\n", "x.conf:3: [device d] guests: 1 to 256 guests are allowed"},
    {"[device d]\nusb=0001:0002\nguests=a;;b\n", "x.conf:3: [device d] guests: write guest names or UUIDs"},
    {"[device d]\nusb=0001:0002\nuntil_max=soon\n", "x.conf:3: [device d] until_max: \"soon\" is not a duration"},
    {"[device d]\nusb=0001:0002\nisolation=0\n", "x.conf:3: [device d] isolation: a duration from 1s to 1h"},
    {"[device d]\nusb=0001:0002\nisolation=61m\n", "x.conf:3: [device d] isolation: a duration from 1s to 1h"},
    {"[device d]\nusb=0001:0002\nmin_rung=steel\n", "x.conf:3: [device d] min_rung: allowed are: none, admission"},
    {"[device d]\nendpoint=tcp:h:1\nisolation=11s\n",
     "x.conf:1: [device d]: isolation= of a network endpoint can be at most ttl_ms"},
    {"[device d]\nusb=0001:0002\n[device e]\nusb=0001:0002\n",
     "x.conf:3: [device e]: device d has the same usb= match and port; one physical device has one name"},
    {"[device d]\nendpoint=unix:/a\n[device e]\nendpoint=unix:/a\n",
     "x.conf:3: [device e]: device d has the same endpoint="},
    {"[device d]\nusb=0001:0002:S\n[device e]\nusb=0001:0002\n",
     "x.conf:3: [device e]: one physical device could be this and device d; write the serial of both in usb="},
    {"[device d]\nusb=0001:0002\nport=1-2\n[device e]\nusb=0001:0002\nport=1-2\n",
     "x.conf:4: [device e]: device d has the same usb= match and port"},
    {"[device d]\nusb=0001:0002\nport=1-2\n[device e]\nusb=0001:0002:S\n",
     "x.conf:4: [device e]: one physical device could be this and device d"},
    {"[device d]\nendpoint=unix:/a\nport=1-2\n", "x.conf:1: [device d]: port= goes with usb="},
    {"[device d]\nusb=0001:0002\nport=\n", "x.conf:3: [device d] port: write the port as sysfs names"},
    {"[device d]\nusb=0001:0002\nport=1\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1.2\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-2.\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-2-3\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-02\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=usb1\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-2.3.4.5.6.7.8.9\n", "x.conf:3: [device d] port: write"},
    {"[device d]\nusb=0001:0002\nport=1-256\n", "x.conf:3: [device d] port: write"},
};

START_TEST(mistakes) {
  const auto& row = kBad[_i];
  const auto config = parse_config(row.text, "x.conf");
  ck_assert_msg(!config, "accepted: %s", row.text.c_str());
  ck_assert(config.error().code == ErrorCode::kBadInput);
  ck_assert_msg(config.error().message.rfind(row.message, 0) == 0, "for %s expected \"%s\", got \"%s\"",
                row.text.c_str(), row.message, config.error().message.c_str());
  ck_assert(config.error().message.find('\n') == std::string::npos);
}
END_TEST

START_TEST(bounds) {
  constexpr std::size_t kMiB = 1'048'576;
  std::string many;
  for (int i = 0; i <= 1024; ++i)
    many += "[device d" + std::to_string(i) + "]\nendpoint=tcp:h:" + std::to_string(i + 1) + "\n";
  ck_assert_fails(parse_config(many, "x.conf"), ErrorCode::kBadInput,
                  "x.conf:2049: [device d1024]: at most 1024 devices");
  ck_assert_fails(parse_config(std::string(kMiB + 1, '\n'), "x.conf"), ErrorCode::kBadInput, "larger than 1 MiB");
  ck_assert_ok(parse_config(std::string(kMiB, '\n'), "x.conf"));
}
END_TEST

START_TEST(files) {
  const test::TemporaryDirectory directory;
  ck_assert_fails(load_config(directory.file("absent")), ErrorCode::kNotFound, "No such file");
  ck_assert_fails(load_config(directory.file(".")), ErrorCode::kInternal, "cannot read");
  // Never ends: must be bounded.
  ck_assert_fails(load_config("/dev/zero"), ErrorCode::kBadInput, "larger than 1 MiB");
  const std::string path = directory.write("c", "[daemon]\nhost_id=abc\n");
  const auto config = load_config(path);
  ck_assert_ok(config);
  ck_assert_text_eq(config->host_id, "abc");
  ck_assert_fails(load_config(directory.write("c", "[x]\n")), ErrorCode::kBadInput, path + ":1: [x]");
}
END_TEST

std::string show(const Config& c) {
  std::ostringstream out;
  out << c.state_dir << ' ' << c.run_dir << ' ' << static_cast<int>(c.log_level) << ' ' << c.libvirt_uri << ' '
      << c.libvirt_run_dir << ' ' << c.relay_user << ' ' << c.act_group << ' ' << static_cast<int>(c.read) << ' '
      << c.ttl_ms << ' ' << c.renewal_ms << ' ' << c.grace_ms << ' ' << c.drift_ppm << ' ' << c.hook_deadline_ms;
  return out.str();
}

std::string read_file(const char* path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  ck_assert_msg(in.good() && !out.str().empty(), "cannot read %s", path);
  return out.str();
}

std::set<std::string> known_keys() {
  std::set<std::string> keys;
  for (const char* group : {"daemon", "cluster", "store", "access", "timing", "hook", "device d"}) {
    const auto config = parse_config("["s + group + "]\nno_such_key=1\n", "x.conf");
    ck_assert(!config);
    std::string list = config.error().message;
    list = list.substr(list.rfind(": ") + 2);
    std::istringstream names(list);
    std::string name;
    while (std::getline(names >> std::ws, name, ',')) keys.insert(name);
  }
  ck_assert_uint_gt(keys.size(), 20);
  return keys;
}

// "#key=value" and "#[group]" become settings; "# words" stay comments.
std::string without_comment_marks(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  std::string out;
  while (std::getline(lines, line)) {
    const bool setting = line.size() > 1 && line[0] == '#' && line[1] != ' ';
    out += line.substr(setting ? 1 : 0) + "\n";
  }
  return out;
}

// The file that is installed as it is means nothing but the defaults; with its comments opened it means the same.
START_TEST(the_packaged_file_shows_the_defaults) {
  const std::string packaged = read_file(PACKAGED_CONFIG);
  ck_assert_text_eq(show(good(packaged)), show(Config()));
  const std::string opened = without_comment_marks(packaged);
  ck_assert(opened != packaged);
  const Config c = good(opened);
  ck_assert_text_eq(show(c), show(Config()));
  ck_assert_uint_gt(c.devices.size(), 0);
  for (const auto& key : known_keys()) {
    ck_assert_msg(opened.find("\n" + key + "=") != std::string::npos, "%s is missing in it", key.c_str());
  }
}
END_TEST

START_TEST(the_manual_names_every_key) {
  const std::string manual = read_file(CONFIG_MANUAL);
  for (const auto& key : known_keys()) {
    ck_assert_msg(manual.find("``" + key + "=``") != std::string::npos, "%s is missing in it", key.c_str());
  }
}
END_TEST

START_TEST(guest_socket_paths) {
  const std::string uuid = "3e3fce45-4f53-4fa7-bb32-11f34168b82b";
  bool bad = true;
  const std::string path = guest_socket_path("/run/usblease", uuid, "dongle");
  ck_assert_text_eq(path, "/run/usblease/guests/" + uuid + "/dongle");
  const auto name = parse_guest_socket_path("/run/usblease", path, &bad);
  ck_assert(name.has_value() && !bad);
  ck_assert_text_eq(name->guest_uuid, uuid);
  ck_assert_text_eq(name->device, "dongle");
  // The longest of everything fits into sun_path.
  ck_assert_uint_le(guest_socket_path(std::string(14, 'r'), uuid, std::string(48, 'd')).size(), 107);
  for (const char* other : {"", "/run/usblease", "/run/usblease/usbleased.sock", "/tmp/x", "run/usblease/guests/a/b"}) {
    ck_assert(!parse_guest_socket_path("/run/usblease", other, &bad).has_value());
    ck_assert_msg(!bad, "%s", other);
  }
  const std::string root = "/run/usblease/guests/";
  for (const std::string& malformed : {root, root + uuid, root + uuid + "/", root + uuid + "/A", root + "x/dongle",
                                       root + uuid + "/../x", root + uuid + "/a/b", root + "/dongle"}) {
    ck_assert(!parse_guest_socket_path("/run/usblease", malformed, &bad).has_value());
    ck_assert_msg(bad, "%s", malformed.c_str());
  }
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("config");
  TCase* const all = tcase_create("config");
  tcase_add_test(all, nothing_means_the_defaults);
  tcase_add_test(all, every_key);
  tcase_add_test(all, a_profile_and_single_keys);
  tcase_add_test(all, every_rung_has_a_name);
  tcase_add_loop_test(all, mistakes, 0, static_cast<int>(std::size(kBad)));
  tcase_add_test(all, bounds);
  tcase_add_test(all, files);
  tcase_add_test(all, the_packaged_file_shows_the_defaults);
  tcase_add_test(all, the_manual_names_every_key);
  tcase_add_test(all, guest_socket_paths);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
