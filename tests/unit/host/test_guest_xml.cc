// Our devices in domain XML.
#include "daemon/host/guest_xml.h"
#include "tests/unit/host/host_test.h"

namespace usblease::host {
namespace {

START_TEST(aliases) {
  test::expect_text(device_alias("dongle"), "ua-usblease-dongle");
  test::expect_text(device_of_alias("ua-usblease-dongle-1").value_or(""), "dongle-1");
  for (const char* other : {"", "redir0", "ua-usblease-", "ua-usblease-A", "ua-usblease-a b", "ua-usbleasea", "ua-x"}) {
    ck_assert(!device_of_alias(other).has_value());
  }
}
END_TEST

START_TEST(finds_ours) {
  const auto devices = attached_devices(
      "<domain id='3'><metadata><alias name='ua-usblease-no'/></metadata><devices>"
      "<redirdev bus='usb' type='unix'><source mode='connect' path='/x'/><alias name='ua-usblease-a'/></redirdev>"
      "<redirdev bus='usb' type='unix'><alias name='redir1'/></redirdev>"
      "<hostdev><source><alias name='ua-usblease-no'/></source><alias name='ua-usblease-b_2'/></hostdev>"
      "<disk><alias/></disk></devices></domain>");
  ck_assert(devices.has_value());
  ck_assert_uint_eq(devices->size(), 2);
  test::expect_text(devices->at(0), "a");
  test::expect_text(devices->at(1), "b_2");
  ck_assert_uint_eq(attached_devices("<domain/>")->size(), 0);
}
END_TEST

START_TEST(bounded) {
  for (const char* bad : {"", "<domain", "<volume/>", "<!DOCTYPE domain><domain/>"}) {
    test::expect_code(attached_devices(bad).error(), ErrorCode::kBadInput, "domain XML");
  }
  test::expect_code(attached_devices(std::string(kDomainXmlBytesMax + 1, ' ')).error(), ErrorCode::kBadInput, "8 MiB");
}
END_TEST

START_TEST(what_is_attached_is_found) {
  const std::string xml = redirdev_xml("dongle", "/run/a'b<c>&/d");
  ck_assert(xml.find("path='/run/a&apos;b&lt;c&gt;&amp;/d'") != std::string::npos);
  const auto devices = attached_devices("<domain><devices>" + xml + "</devices></domain>");
  ck_assert_uint_eq(devices->size(), 1);
  test::expect_text(devices->at(0), "dongle");
}
END_TEST

}  // namespace
}  // namespace usblease::host

int main() {
  using namespace usblease::host;
  return usblease::test::run_suite("guest_xml", {aliases, finds_ours, bounded, what_is_attached_is_found});
}
