// Names, durations, and untrusted strings made printable.
#include <climits>
#include <ctime>

#include "common/text.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;

namespace {

using std::string_literals::operator""s;

START_TEST(escapes_what_cannot_print) {
  const struct {
    std::string in;
    std::string out;
  } table[] = {
      {"", ""},
      {"SafeNet eToken \"5110\"", "SafeNet eToken \"5110\""},
      {"a\nb\tc", "a\\x0Ab\\x09c"},
      {"\x1b[31mred", "\\x1B[31mred"},
      {"nul\0nul"s, "nul\\x00nul"},
      {"back\\slash", "back\\x5Cslash"},
      {"caf\xc3\xa9", "caf\xc3\xa9"},
      {"cut \xc3", "cut \\xC3"},
      {"bad \xff\xfe", "bad \\xFF\\xFE"},
      {"over\xc0\xaflong", "over\\xC0\\xAFlong"},
      {"surrogate \xed\xa0\x80", "surrogate \\xED\\xA0\\x80"},
      // Right-to-left override: would turn the rest of a table's line around.
      {"rlo \xe2\x80\xae", "rlo \\xE2\\x80\\xAE"},
      {"\x7f\xc2\x85", "\\x7F\\xC2\\x85"},
  };
  for (const auto& row : table) ck_assert_text_eq(escape_text(row.in), row.out);
}
END_TEST

START_TEST(device_names) {
  for (const char* good : {"a", "0", "dongle", "hsm-1", "a_b", "9-_"}) ck_assert_msg(is_device_name(good), "%s", good);
  ck_assert(is_device_name(std::string(48, 'a')));
  for (const char* bad : {"", "-a", "_a", "A", "a.b", "a/b", "a b", "caf\xc3\xa9", "a\n"}) {
    ck_assert_msg(!is_device_name(bad), "%s", bad);
  }
  ck_assert(!is_device_name(std::string(49, 'a')));
  ck_assert(!is_device_name(std::string_view("a\0b", 3)));
}
END_TEST

START_TEST(identifiers) {
  for (const char* good : {"a", "Node1.example.org", "0-a_B"}) ck_assert_msg(is_identifier(good), "%s", good);
  for (const char* bad : {"", ".a", "-a", "a/b", "a b", "a\n"}) ck_assert_msg(!is_identifier(bad), "%s", bad);
  ck_assert(is_identifier(std::string(64, 'x')));
  ck_assert(!is_identifier(std::string(65, 'x')));
}
END_TEST

START_TEST(uuids) {
  const auto uuid = parse_uuid("3E3FCE45-4F53-4FA7-BB32-11F34168B82B");
  ck_assert_ok(uuid);
  ck_assert_text_eq(*uuid, "3e3fce45-4f53-4fa7-bb32-11f34168b82b");
  for (const char* bad : {"", "3e3fce45", "3e3fce454f534fa7bb3211f34168b82b", "3e3fce45-4f53-4fa7-bb32-11f34168b82g",
                          "{3e3fce45-4f53-4fa7-bb32-11f34168b82}", " 3e3fce45-4f53-4fa7-bb32-11f34168b82"}) {
    ck_assert_fails(parse_uuid(bad), ErrorCode::kBadInput, "is not a UUID");
  }
  ck_assert_fails(parse_uuid("x\n"), ErrorCode::kBadInput, "\"x\\x0A\"");
  ck_assert_uint_lt(parse_uuid(std::string(100'000, 'y')).error().message.size(), 200);
}
END_TEST

START_TEST(durations) {
  const struct {
    const char* text;
    std::uint64_t seconds;
    const char* again;
  } good[] = {{"0", 0, "0s"},          {"90", 90, "1m30s"},           {"90s", 90, "1m30s"},
              {"15m", 900, "15m"},     {"2h30m", 9000, "2h30m"},      {"1d", 86400, "1d"},
              {"1d1s", 86401, "1d1s"}, {"3650d", 315360000, "3650d"}, {"315360000", 315360000, "3650d"}};
  for (const auto& row : good) {
    const auto seconds = parse_duration_s(row.text);
    ck_assert_ok(seconds);
    ck_assert_uint_eq(*seconds, row.seconds);
    ck_assert_text_eq(format_duration(*seconds), row.again);
  }
  for (const char* bad : {"", "s", "-1", "+1", "1.5h", "1h30", "1x", "1 h", " 1", "1h ", "3651d", "315360001",
                          "99999999999999999999999", "18446744073709551617s", "1hh", "0x10"}) {
    ck_assert_fails(parse_duration_s(bad), ErrorCode::kBadInput, "write for example 90s, 15m, 2h30m or 1d");
  }
}
END_TEST

START_TEST(times_of_day) {
  setenv("TZ", "UTC", 1);
  tzset();
  ck_assert_text_eq(format_unix_time(0), "-");
  ck_assert_text_eq(format_unix_time(1), "1970-01-01 00:00:01");
  // A duration of ten years reaches beyond what 31 bits hold.
  ck_assert_text_eq(format_unix_time(2'147'483'648), "2038-01-19 03:14:08");
  ck_assert_text_eq(format_unix_time(253'402'300'799), "9999-12-31 23:59:59");
  ck_assert_text_eq(format_unix_time(253'402'300'800), "-");
  ck_assert_text_eq(format_unix_time(UINT64_MAX), "-");
}
END_TEST

START_TEST(random_ids) {
  const std::string one = random_hex(8);
  ck_assert_uint_eq(one.size(), 16);
  ck_assert(one.find_first_not_of("0123456789abcdef") == std::string::npos);
  ck_assert(one != random_hex(8));
  ck_assert_text_eq(random_hex(0), "");
}
END_TEST

}  // namespace

int main() {
  Suite* const suite = suite_create("text");
  TCase* const all = tcase_create("text");
  tcase_add_test(all, escapes_what_cannot_print);
  tcase_add_test(all, device_names);
  tcase_add_test(all, identifiers);
  tcase_add_test(all, uuids);
  tcase_add_test(all, durations);
  tcase_add_test(all, times_of_day);
  tcase_add_test(all, random_ids);
  suite_add_tcase(suite, all);
  return test::run_suite(suite);
}
