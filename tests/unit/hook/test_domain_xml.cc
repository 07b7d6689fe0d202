// Reading the domain XML, the hostile kinds above all.
#include <cstdlib>

#include "plugin/libvirt/domain_xml.h"
#include "tests/unit/hook/hook_testing.h"

using namespace usblease;
using namespace usblease::hook;
using namespace usblease::hook::testing;

namespace {

// The message; "" when the XML was read.
std::string error_of(const std::string& xml) {
  const auto domain = parse_domain(xml);
  return domain ? "" : domain.error().message;
}

void assert_error(const std::string& xml, const char* part) {
  const std::string error = error_of(xml);
  ck_assert_msg(error.find(part) != std::string::npos, "\"%s\" lacks \"%s\"", error.c_str(), part);
}

}  // namespace

START_TEST(reads_what_matters) {
  const auto domain =
      parse_domain(domain_xml("<disk type='block'><source dev='/dev/a&amp;b'/></disk>",
                              "<x:devices xmlns:x='urn:usblease:domain:1'><x:device name='d'/></x:devices>"
                              "<other:app xmlns:other='urn:other'><other:hostdev/></other:app>"));
  ck_assert(domain.has_value());
  ck_assert_int_eq(domain->id, 7);
  ck_assert_str_eq(domain->uuid.c_str(), kUuid);
  ck_assert_uint_eq(domain->devices.size(), 1);
  ck_assert_str_eq(domain->devices[0].child("source")->attribute("dev").c_str(), "/dev/a&b");
  ck_assert_uint_eq(domain->metadata.size(), 1);
  ck_assert_str_eq(domain->metadata[0].children[0].attribute("name").c_str(), "d");
}
END_TEST

START_TEST(a_stopped_guest_has_no_id) {
  const auto domain = parse_domain(domain_xml("", "", "<domain type='qemu'>"));
  ck_assert(domain.has_value());
  ck_assert_int_eq(domain->id, -1);
  ck_assert_int_eq(parse_domain(domain_xml("", "", "<domain type='qemu' id='99999999999'>"))->id, -1);
}
END_TEST

START_TEST(only_the_direct_sections_count) {
  // The same names one level lower, higher or in another namespace are somebody else's.
  const auto domain = parse_domain(
      domain_xml("<a xmlns='urn:x'><hostdev/></a>", "<m xmlns='urn:x'><devices xmlns='urn:usblease:domain:1'/></m>"));
  ck_assert(domain.has_value());
  ck_assert(domain->devices.empty());
  ck_assert(domain->metadata.empty());
  const auto other = parse_domain("<domain><x:devices xmlns:x='urn:x'><hostdev/></x:devices></domain>");
  ck_assert(other.has_value());
  ck_assert(other->devices.empty());
}
END_TEST

START_TEST(a_bad_uuid_is_no_uuid) {
  ck_assert(parse_domain("<domain><uuid>../../etc</uuid></domain>")->uuid.empty());
  ck_assert(parse_domain("<domain><uuid/></domain>")->uuid.empty());
}
END_TEST

START_TEST(malformed) {
  assert_error("", "line 1");
  assert_error("<domain>", "line 1");
  assert_error("<domain><devices></domain>", "line 1");
  assert_error("<network/>", "<network>, not <domain>");
  assert_error(std::string("<domain>\0</domain>", 18), "line 1");
  assert_error("<domain a='1' a='2'/>", "line 1");
  assert_error("<domain><x:y/></domain>", "");  // an unbound prefix must not crash
  assert_error("<domain>\xff\xfe</domain>", "line 1");
  assert_error("<domain>\n\n&nothing;</domain>", "line 3");
}
END_TEST

START_TEST(entities_are_refused_unread) {
  std::string laughs = "<!DOCTYPE domain [<!ENTITY a0 'usblease'>";
  for (int i = 1; i < 30; ++i) {
    const std::string below = "&a" + std::to_string(i - 1) + ";";
    laughs.append("<!ENTITY a").append(std::to_string(i)).append(" '");
    for (int times = 0; times < 4; ++times) laughs += below;
    laughs += "'>";
  }
  assert_error(laughs + "]><domain id='&a29;'><name>&a29;</name></domain>", "document type");
  assert_error("<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", "document type");
  assert_error("<!DOCTYPE d [<!ENTITY x SYSTEM 'http://192.0.2.1/'>]><domain>&x;</domain>", "document type");
  assert_error("<!DOCTYPE d [<!ENTITY % p SYSTEM 'file:///dev/zero'>%p;]><domain/>", "document type");
}
END_TEST

START_TEST(too_deep_too_many_too_large) {
  std::string deep = "<domain><devices>";
  for (int i = 0; i < 100'000; ++i) deep += "<a>";
  assert_error(deep, "depth");

  std::string many = "<domain><devices>";
  for (std::size_t i = 0; i <= kElementsMax; ++i) many += "<a/>";
  assert_error(many + "</devices></domain>", "more than 65536 elements");

  assert_error("<domain>" + std::string(kXmlBytesMax, ' ') + "</domain>", "larger than 16 MiB");
}
END_TEST

START_TEST(serializes_for_another_parser) {
  const auto domain = parse_domain(domain_xml("", our_metadata("<usblease:device name='a&lt;\"&#39;&#10;b' x:name='c' "
                                                               "xmlns:x='urn:x'/><other xmlns='urn:&amp;'/>")));
  ck_assert(domain.has_value());
  const std::string text = serialize(domain->metadata[0]);
  ck_assert_str_eq(
      text.c_str(),
      "<devices xmlns='urn:usblease:domain:1'><device xmlns='urn:usblease:domain:1' "
      "name='a&#60;&#34;&#39;&#10;b' foreign-1-name='c'></device><other xmlns='urn:&#38;'></other></devices>");
}
END_TEST

int main() {
  return test::run_suite(
      "hook-domain_xml",
      {reads_what_matters, a_stopped_guest_has_no_id, only_the_direct_sections_count, a_bad_uuid_is_no_uuid, malformed,
       entities_are_refused_unread, too_deep_too_many_too_large, serializes_for_another_parser},
      60);
}
