// The devices that a guest declares: what libvirt hands back, what people may have edited, what is refused.
#include <string>

#include "common/assignments.h"
#include "tests/lib/check_suite.h"

namespace usblease {
namespace {

void expect_bad(const std::string& xml, const char* part) {
  const auto parsed = parse_assignments(xml);
  ck_assert_msg(!parsed, "accepted: %s", xml.substr(0, 200).c_str());
  ck_assert_int_eq(static_cast<int>(parsed.error().code), static_cast<int>(ErrorCode::kBadInput));
  ck_assert_msg(parsed.error().message.find(part) != std::string::npos, "\"%s\" does not say \"%s\"",
                parsed.error().message.c_str(), part);
}

std::string many_devices(int count) {
  std::string xml = "<devices>";
  for (int i = 0; i < count; ++i) xml += "<device name='d" + std::to_string(i) + "'/>";
  return xml + "</devices>";
}

START_TEST(as_libvirt_returns_it) {
  // virDomainGetMetadata: our prefix and namespace are taken away, white space is added.
  const auto parsed = parse_assignments("<devices>\n  <device name=\"a\" required=\"no\" wait=\"3\"/>\n</devices>\n");
  ck_assert(parsed.has_value());
  ck_assert_uint_eq(parsed->size(), 1);
  ck_assert_str_eq(parsed->at(0).device.c_str(), "a");
  ck_assert(!parsed->at(0).required);
  ck_assert_uint_eq(parsed->at(0).wait_s, 3);
}
END_TEST

START_TEST(as_in_domain_xml) {
  const auto parsed = parse_assignments(
      "<usblease:devices xmlns:usblease='urn:usblease:domain:1'><!-- office --><usblease:device name='dongle-1'/>"
      "<usblease:device name='hsm' wait='3600'/></usblease:devices>");
  ck_assert(parsed.has_value());
  ck_assert_uint_eq(parsed->size(), 2);
  ck_assert(parsed->at(0).required);
  ck_assert_uint_eq(parsed->at(0).wait_s, 0);
  ck_assert_uint_eq(parsed->at(1).wait_s, 3600);
}
END_TEST

START_TEST(what_is_written_is_read_back) {
  const std::vector<Assignment> written = {{"a", true, 0}, {"b-2_c", false, 30}};
  const auto parsed = parse_assignments(format_assignments(written));
  ck_assert(parsed.has_value());
  ck_assert_uint_eq(parsed->size(), 2);
  for (std::size_t i = 0; i < 2; ++i) {
    ck_assert_str_eq(parsed->at(i).device.c_str(), written[i].device.c_str());
    ck_assert_int_eq(parsed->at(i).required, written[i].required);
    ck_assert_uint_eq(parsed->at(i).wait_s, written[i].wait_s);
  }
  ck_assert(parse_assignments(format_assignments({})).has_value());
}
END_TEST

START_TEST(misspelled_is_refused) {
  expect_bad("<devices><device name='a' requierd='no'/></devices>", "requierd");
  expect_bad("<devices><device name='a' required='true'/></devices>", "required=");
  expect_bad("<devices><device name='a' wait='3601'/></devices>", "wait=");
  expect_bad("<devices><device name='a' wait='-1'/></devices>", "wait=");
  expect_bad("<devices><device name='a' wait='3s'/></devices>", "wait=");
  expect_bad("<devices><device name='a' wait=''/></devices>", "wait=");
  expect_bad("<devices><device/></devices>", "name=");
  expect_bad("<devices><device name='A b'/></devices>", "device name");
  expect_bad("<devices><device name='a'/><device name='a'/></devices>", "twice");
  expect_bad("<devices><dev name='a'/></devices>", "<dev>");
  expect_bad("<devices><device name='a'><wait>3</wait></device></devices>", "<wait>");
  expect_bad("<devices required='no'><device name='a'/></devices>", "required");
  expect_bad("<disks/>", "<devices>");
  expect_bad("<x:devices xmlns:x='urn:other'/>", "urn:usblease:domain:1");
  expect_bad("<devices>\n\n<device nam='a'/></devices>", "line 3");
}
END_TEST

START_TEST(bounded) {
  ck_assert(parse_assignments(many_devices(16)).has_value());
  expect_bad(many_devices(17), "16");
  expect_bad("<devices>" + std::string(70'000, ' ') + "</devices>", "64 KiB");
  expect_bad("", "well-formed");
  expect_bad("<devices>", "well-formed");
  expect_bad(std::string("<devices\0/>", 11), "well-formed");
}
END_TEST

START_TEST(entities_do_not_grow) {
  std::string xml = "<!DOCTYPE devices [<!ENTITY e0 'aaaaaaaaaa'>";
  for (int i = 1; i < 12; ++i) {
    const std::string before = "&e" + std::to_string(i - 1) + ";";
    std::string ten;
    for (int k = 0; k < 10; ++k) ten += before;
    xml += "<!ENTITY e" + std::to_string(i) + " '" + ten + "'>";
  }
  expect_bad(xml + "]><devices><device name='a' wait='&e11;'/></devices>", "usblease metadata");
  expect_bad("<!DOCTYPE devices [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><devices><device name='&e;'/></devices>",
             "usblease metadata");
  expect_bad("<!DOCTYPE devices><devices/>", "document type");
}
END_TEST

}  // namespace
}  // namespace usblease

int main() {
  using namespace usblease;
  return test::run_suite("assignments", {as_libvirt_returns_it, as_in_domain_xml, what_is_written_is_read_back,
                                         misspelled_is_refused, bounded, entities_do_not_grow});
}
