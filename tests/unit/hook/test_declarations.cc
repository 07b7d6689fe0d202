// The rules of docs/domain-xml.md: one row a rule.
#include <cstdlib>
#include <vector>

#include "plugin/libvirt/declarations.h"
#include "plugin/libvirt/quick_look.h"
#include "tests/unit/hook/hook_testing.h"

using namespace usblease;
using namespace usblease::hook;
using namespace usblease::hook::testing;

namespace {

constexpr const char* kConfig =
    "[device dongle]\nusb=0529:0001:A1\n"
    "[device twin]\nusb=0529:0001:B2\n"
    "[device hsm]\nusb=1050:0030\n"
    "[device probe]\nendpoint=unix:/run/probe.sock\n"
    "[device far]\nendpoint=tcp:lab7:4000\n";

const std::string kOurs = std::string("/run/usblease/guests/") + kUuid + "/";
const std::string kTheirs = std::string("/run/usblease/guests/") + kOtherUuid + "/";
const std::string kAddressA1 = "<address bus='1' device='4'/>";
const std::string kIdsA1 = "<vendor id='0x0529'/><product id='0x0001'/>";

struct Outcome {
  std::string text;  // "dongle/hostdev twin/metadata/optional/wait5", or "error: …"
  bool config_was_read = false;
};

std::string to_text(const std::vector<Declared>& declared) {
  std::string out;
  for (const auto& d : declared) {
    static constexpr const char* kWays[] = {"metadata", "redirdev", "hostdev"};
    out += (out.empty() ? "" : " ") + d.device + "/" + kWays[static_cast<int>(d.way)];
    if (!d.required) out += "/optional";
    if (d.wait_s != 0) out += "/wait" + std::to_string(d.wait_s);
  }
  return out;
}

Outcome outcome_of(const std::string& xml, const Sysfs& sysfs, const std::string& config_text = kConfig) {
  const auto domain = parse_domain(xml);
  ck_assert_msg(domain.has_value(), "%s", domain ? "" : domain.error().message.c_str());
  Config config;
  Outcome outcome;
  const auto declared = find_declarations(
      *domain,
      [&]() -> Result<const Config*> {
        ck_assert(!outcome.config_was_read);
        outcome.config_was_read = true;
        auto parsed = parse_config(config_text, "/etc/usblease/usbleased.conf");
        if (!parsed) return tl::unexpected(parsed.error());
        config = *parsed;
        return &config;
      },
      sysfs);
  outcome.text = declared ? to_text(*declared) : "error: " + declared.error().message;
  // Where the rules find something, the look without a parser must have let it through.
  if (!outcome.text.empty()) ck_assert_msg(may_declare(xml.data(), xml.size(), true), "%s", xml.c_str());
  return outcome;
}

// `expected`: the text, or for "error: X" an X that the message holds.
void expect(const Outcome& outcome, const std::string& expected, const std::string& xml) {
  const bool same = expected.rfind("error: ", 0) == 0 ? outcome.text.rfind("error: ", 0) == 0 &&
                                                            outcome.text.find(expected.substr(7)) != std::string::npos
                                                      : outcome.text == expected;
  ck_assert_msg(same, "%s\n  gave \"%s\"\n  not  \"%s\"", xml.c_str(), outcome.text.c_str(), expected.c_str());
}

struct Row {
  std::string devices;
  std::string metadata;
  std::string expected;
};

void check_rows(const std::vector<Row>& rows, const Sysfs& sysfs) {
  for (const Row& row : rows) {
    const std::string xml = domain_xml(row.devices, row.metadata);
    expect(outcome_of(xml, sysfs), row.expected, xml);
  }
}

struct Plugged {
  FakeSysfs tree;
  Sysfs sysfs{tree.root()};
  Plugged() { plug_usual_devices(tree); }
};

}  // namespace

START_TEST(metadata) {
  const Plugged p;
  const std::string device = "<usblease:device name='dongle'/>";
  std::string many;
  for (int i = 0; i < 17; ++i) many += "<usblease:device name='d" + std::to_string(i) + "'/>";
  check_rows(
      {
          {"", our_metadata(device), "dongle/metadata"},
          {"", our_metadata("<usblease:device name='dongle' required='no' wait='5'/>"),
           "dongle/metadata/optional/wait5"},
          {"", our_metadata(device + "<usblease:device name='not-configured'/>"),
           "dongle/metadata not-configured/metadata"},
          {"", our_metadata(""), ""},
          // Any prefix, or none, and a declaration of it further up.
          {"", "<q:devices xmlns:q='urn:usblease:domain:1'><q:device name='dongle'/></q:devices>", "dongle/metadata"},
          {"", "<devices xmlns='urn:usblease:domain:1'><device name='dongle'/></devices>", "dongle/metadata"},
          // Our words in another namespace are not ours.
          {"", "<usblease:devices xmlns:usblease='urn:other'><usblease:device name='dongle'/></usblease:devices>", ""},
          {"", our_metadata(device + device), "error: named twice"},
          {"", our_metadata("<usblease:device name='A B'/>"), "error: is not a device name"},
          {"", our_metadata("<usblease:device/>"), "error: needs name="},
          {"", our_metadata("<usblease:device name='dongle' requird='no'/>"), "error: unknown attribute requird"},
          {"", our_metadata("<usblease:device x:name='dongle' xmlns:x='urn:x'/>"), "error: unknown attribute"},
          {"", our_metadata("<usblease:device name='dongle' wait='1h'/>"), "error: wait="},
          {"", our_metadata("<device xmlns='urn:other' name='dongle'/>"), "error: unknown element"},
          {"", "<usblease:device xmlns:usblease='urn:usblease:domain:1' name='dongle'/>", "error: must be <devices>"},
          {"", our_metadata(device) + our_metadata(device), "error: more than one element"},
          {"", our_metadata(many), "error: at most 16"},
      },
      p.sysfs);
}
END_TEST

START_TEST(redirdevs) {
  const Plugged p;
  std::string many;
  for (int i = 0; i < 17; ++i) many += redirdev(kOurs + "d" + std::to_string(i));
  std::string upper = kOurs + "probe";
  check_rows(
      {
          {redirdev(kOurs + "probe"), "", "probe/redirdev"},
          {redirdev(kOurs + "not-configured"), "", "not-configured/redirdev"},
          {redirdev("/run//usblease/./guests/" + std::string(kUuid) + "/probe"), "", "probe/redirdev"},
          {redirdev("/run/other.sock"), "", ""},
          {"<redirdev bus='usb' type='spicevmc'/>", "", ""},
          {"<redirdev bus='usb' type='unix'/>", "", ""},
          {redirdev(kTheirs + "probe"), "", "error: socket of another guest"},
          {redirdev(kTheirs + "../" + kUuid + "/probe"), "", "probe/redirdev"},
          {redirdev(kOurs + "../" + kOtherUuid + "/probe"), "", "error: socket of another guest"},
          {redirdev("/run/usblease/guests/probe"), "", "error: is not a guest socket"},
          {redirdev(kOurs + "A B"), "", "error: is not a guest socket"},
          {redirdev(kOurs + "probe/x"), "", "error: is not a guest socket"},
          {redirdev(kOurs + "probe", "bind"), "", "error: mode='connect'"},
          {redirdev(kOurs + "probe") + redirdev(kOurs + "probe"), "", "error: two elements"},
          {redirdev("/run/probe.sock"), "", "error: endpoint of the managed device probe"},
          {redirdev("/run/../run//probe.sock"), "", "error: endpoint of the managed device probe"},
          {"<redirdev bus='usb' type='tcp'><source mode='connect' host='lab7' service='4000'/></redirdev>", "",
           "error: endpoint of the managed device far"},
          {"<redirdev bus='usb' type='tcp'><source mode='connect' host='lab7' service='4001'/></redirdev>", "", ""},
          {many, "", "error: more than 16"},
      },
      p.sysfs);
}
END_TEST

START_TEST(hostdevs) {
  const Plugged p;
  check_rows(
      {
          // By identity: only the one that is plugged in is meant.
          {hostdev_usb(kIdsA1), "", "dongle/hostdev"},
          {hostdev_usb("<vendor id='0x529'/><product id='1'/>"), "", "dongle/hostdev"},
          {hostdev_usb("<vendor id='0x1050'/><product id='0x0030'/>"), "", "hsm/hostdev"},
          {hostdev_usb("<vendor id='0x046d'/><product id='0xc077'/>"), "", ""},
          // By address, alone or with the identity, as libvirt writes it once it is known.
          {hostdev_usb(kAddressA1), "", "dongle/hostdev"},
          {hostdev_usb(kIdsA1 + kAddressA1), "", "dongle/hostdev"},
          {hostdev_usb(kIdsA1 + "<address bus='1' device='77'/>"), "", "dongle/hostdev"},
          {hostdev_usb("<address bus='1' port='2'/>"), "", "dongle/hostdev"},
          {hostdev_usb("<address bus='1' device='5'/>"), "", ""},
          {hostdev_usb("<address bus='9' device='9'/>"), "", ""},
          {hostdev_usb("<something new='1'/>"), "", "error: in a way that usblease does not know"},
          {hostdev_usb(""), "", "error: in a way that usblease does not know"},
          {hostdev_usb(kIdsA1) + hostdev_usb(kAddressA1), "", "error: two elements"},
          {hostdev_usb(kIdsA1) + redirdev(kOurs + "dongle"), "", "error: two elements"},
          {"<hostdev mode='subsystem' type='usb'/>", "", ""},
          {"<hostdev mode='subsystem' type='mdev'><source><address uuid='x'/></source></hostdev>", "", ""},
      },
      p.sysfs);
}
END_TEST

START_TEST(identical_devices) {
  Plugged p;
  // The twin beside the dongle: the identity alone does not say which.
  p.tree.add_usb("pci0000:00/0000:00:14.0/usb1/1-6", 1, 9, "0529", "0001", "B2");
  check_rows({{hostdev_usb(kIdsA1), "", "error: matches several devices: dongle and twin"},
              {hostdev_usb(kAddressA1), "", "dongle/hostdev"},
              {hostdev_usb(kIdsA1 + "<address bus='1' device='9'/>"), "", "twin/hostdev"}},
             p.sysfs);
  // One that nobody manages.
  p.tree.add_usb("pci0000:00/0000:00:14.0/usb1/1-7", 1, 10, "0529", "0001", "C3");
  check_rows({{hostdev_usb("<address bus='1' device='10'/>"), "", ""},
              {hostdev_usb(kIdsA1), "", "error: one that is not managed and dongle and twin"}},
             p.sysfs);
}
END_TEST

START_TEST(nothing_plugged_in) {
  const FakeSysfs tree;
  const Sysfs sysfs(tree.root());
  check_rows({{hostdev_usb("<vendor id='0x1050'/><product id='0x0030'/>"), "", "hsm/hostdev"},
              {hostdev_usb(kIdsA1), "", "error: matches several devices"},
              {hostdev_usb(kAddressA1), "", ""}},
             sysfs);
}
END_TEST

START_TEST(two_ways_are_one_declaration) {
  const Plugged p;
  const std::string wait = our_metadata(
      "<usblease:device name='dongle' required='no' wait='30'/>"
      "<usblease:device name='probe' wait='2'/>");
  check_rows({{hostdev_usb(kIdsA1), wait, "dongle/hostdev/wait30 probe/metadata/wait2"},
              {redirdev(kOurs + "dongle"), wait, "dongle/redirdev/wait30 probe/metadata/wait2"},
              {redirdev(kOurs + "probe") + hostdev_usb(kIdsA1), wait, "dongle/hostdev/wait30 probe/redirdev/wait2"}},
             p.sysfs);
}
END_TEST

START_TEST(controllers) {
  const Plugged p;
  const auto pci = [](const std::string& address) {
    return "<hostdev mode='subsystem' type='pci' managed='yes'><source><address " + address + "/></source></hostdev>";
  };
  check_rows({{pci("domain='0x0000' bus='0x00' slot='0x14' function='0x0'"), "",
               "error: 0000:00:14.0 is the controller of the managed device dongle"},
              {pci("bus='0' slot='20' function='0'"), "", "error: the controller of the managed device dongle"},
              {pci("domain='0x0000' bus='0x00' slot='0x1a' function='0x0'"), "", ""},
              {pci("domain='0x0000' bus='0x01' slot='0x00' function='0x0'"), "", ""},
              {pci("bus='0x00'"), "", ""}},
             p.sysfs);
}
END_TEST

START_TEST(child_nodes) {
  Plugged p;
  const TempDir dev;
  const std::string below = "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0";
  // /dev/null and /dev/zero play the nodes: 1:3 is the dongle's serial port, 1:5 a dm device on a partition of its
  // disk.
  p.tree.add(below + "/ttyUSB0/tty/ttyUSB0");
  p.tree.link("dev/char/1:3", below + "/ttyUSB0/tty/ttyUSB0");
  p.tree.add(below + "/host6/target6:0:0/6:0:0:0/block/sdb/sdb1");
  p.tree.add("virtual/block/dm-0");
  p.tree.link("dev/char/1:5", "virtual/block/dm-0");
  p.tree.link("devices/virtual/block/dm-0/slaves/sdb1", below + "/host6/target6:0:0/6:0:0:0/block/sdb/sdb1");
  p.tree.link("class/scsi_host/host6", below + "/host6");
  p.tree.add(below + "/net/enx0");
  p.tree.link("class/net/enx0", below + "/net/enx0");
  dev.link("by-id/usb-dongle", "/dev/null");
  const std::string node = "error: is a node of the managed device dongle";
  const auto scsi = [](const std::string& host) {
    return "<hostdev mode='subsystem' type='scsi'><source><adapter name='" + host +
           "'/><address bus='0' target='0' unit='0'/></source></hostdev>";
  };
  check_rows(
      {
          {"<serial type='dev'><source path='/dev/null'/></serial>", "", node},
          {"<serial type='dev'><source path='" + dev.at("by-id/usb-dongle") + "'/></serial>", "", node},
          {"<disk type='block'><source dev='" + dev.at("by-id/usb-dongle") + "'/></disk>", "", node},
          {"<disk type='block'><source dev='/dev/zero'/></disk>", "", node},
          {"<disk type='file'><source file='/tmp/../dev//null'/></disk>", "", node},
          {"<disk type='file'><source file='/a'/><backingStore type='block'><source "
           "dev='/dev/zero'/></backingStore></disk>",
           "", node},
          {"<input type='evdev'><source dev='/dev/null'/></input>", "", node},
          {"<rng model='virtio'><backend model='random'>/dev/null</backend></rng>", "", node},
          {scsi("scsi_host6"), "", "error: the SCSI host 'scsi_host6' belongs to the managed device dongle"},
          {scsi("scsi_host7"), "", ""},
          {"<interface type='direct'><source dev='enx0'/></interface>", "", "error: 'enx0' belongs to the managed"},
          {"<interface type='direct'><source dev='eth0'/></interface>", "", ""},
          {"<interface type='direct'><source dev='../net/enx0'/></interface>", "", ""},
          {"<serial type='dev'><source path='/dev/full'/></serial>", "", ""},
          {"<serial type='dev'><source path='/dev/no-such-node'/></serial>", "", ""},
          {"<disk type='file'><source file='" + dev.at("by-id/usb-dongle") + "'/></disk>", "", ""},
      },
      p.sysfs);
  std::string many;
  for (std::size_t i = 0; i <= kNodesMax; ++i) many += "<input><source dev='/dev/x" + std::to_string(i) + "'/></input>";
  check_rows({{many, "", "error: more than 1024 host device nodes"}}, p.sysfs);
}
END_TEST

START_TEST(a_broken_configuration_stops_only_whom_it_concerns) {
  Plugged p;
  p.tree.add("pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/tty");
  p.tree.link("dev/char/1:3", "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/tty");
  const std::string error =
      "error: the configuration that says which are managed cannot be read: "
      "/etc/usblease/usbleased.conf:1: [devcie dongle]";
  const std::vector<Row> rows = {
      {"", our_metadata("<usblease:device name='dongle'/>"), error},
      {redirdev("/run/x.sock"), "", error},
      {hostdev_usb("<vendor id='0x046d'/><product id='0xc077'/>"), "", error},
      {"<serial type='dev'><source path='/dev/null'/></serial>", "", error},
      {"<serial type='dev'><source path='/dev/full'/></serial>", "", ""},
      {"<redirdev bus='usb' type='spicevmc'/>", "", ""},
      {"<disk type='block'><source dev='/dev/vg/root'/></disk>", "", ""},
      {"<hostdev mode='subsystem' type='pci'><source><address bus='1' slot='0' function='0'/></source></hostdev>", "",
       ""},
  };
  for (const Row& row : rows) {
    const std::string xml = domain_xml(row.devices, row.metadata);
    const Outcome outcome = outcome_of(xml, p.sysfs, "[devcie dongle]\n");
    expect(outcome, row.expected, xml);
    ck_assert_msg(outcome.config_was_read != row.expected.empty(), "%s", xml.c_str());
  }
}
END_TEST

START_TEST(hostile_text_is_escaped) {
  const Plugged p;
  const std::string xml = domain_xml(redirdev("/run/usblease/guests/&#10;fake: all is well\xc2\x9b"));
  const Outcome outcome = outcome_of(xml, p.sysfs);
  ck_assert_msg(outcome.text.find('\n') == std::string::npos, "%s", outcome.text.c_str());
  ck_assert_ptr_nonnull(strstr(outcome.text.c_str(), "\\x0Afake"));
}
END_TEST

START_TEST(sysfs_garbage) {
  FakeSysfs tree;
  tree.add_usb("usb1/1-1", 1, 2, "zzzz", "0001");
  tree.add_usb("usb1/1-2", 1, 3, "0529", "0001", std::string(1000, 'x'));
  tree.link("bus/usb/devices/1-9", "nowhere");
  const Sysfs sysfs(tree.root());
  const auto devices = sysfs.usb_devices();
  ck_assert_uint_eq(devices.size(), 1);
  ck_assert_uint_eq(devices[0].serial.size(), 256);
  ck_assert(Sysfs("/no/such/tree").usb_devices().empty());
  ck_assert(Sysfs("/no/such/tree").usb_above_node("/dev/null").empty());
}
END_TEST

int main() {
  return test::run_suite(
      "hook-declarations",
      {metadata, redirdevs, hostdevs, identical_devices, nothing_plugged_in, two_ways_are_one_declaration, controllers,
       child_nodes, a_broken_configuration_stops_only_whom_it_concerns, hostile_text_is_escaped, sysfs_garbage},
      60);
}
