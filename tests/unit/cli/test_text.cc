// Tables, untrusted strings, progress, exit codes.
#include <cstdlib>
#include <ctime>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "cli/views.h"
#include "tests/unit/cli/cases.h"

namespace {

using namespace usblease;
using namespace usblease::cli;

START_TEST(tables_are_aligned_and_escaped) {
  Table table({"Device", "Guest", "Queue"});
  table.add({"dongle", "", "0"});
  table.add({"a", "evil\x1b[31m\nname\xff", "12"});
  table.add({"b", "gr\xC3\xBC\xC3\x9F \xE4\xB8\xAD", "3"});
  check_text(table.format(true),
             " Device   Guest                      Queue\n"
             "-------------------------------------------\n"
             " dongle   -                          0\n"
             " a        evil\\x1B[31m\\x0Aname\\xFF   12\n"
             " b        gr\xC3\xBC\xC3\x9F \xE4\xB8\xAD                    3\n");
  check_text(Table({"A", "B"}).format(true), " A   B\n-------\n");
  check_text(Table({"A", "B"}).format(false), "");
  Table plain({"A"});
  plain.add({"x"});
  check_text(plain.format(false), " x\n");
}
END_TEST

START_TEST(facts_are_aligned_and_escaped) {
  Facts facts;
  facts.add("Device", "dongle");
  facts.add("Serial number", "\x07\x9b");
  facts.add_if("Nothing", "");
  facts.add("Empty", "");
  check_text(facts.format(), "Device:         dongle\nSerial number:  \\x07\\x9B\nEmpty:          -\n");
}
END_TEST

START_TEST(widths_count_columns) {
  ck_assert_uint_eq(display_width("abc"), 3);
  ck_assert_uint_eq(display_width("\xC3\xBC"), 1);
  ck_assert_uint_eq(display_width("\xE4\xB8\xAD"), 2);
  ck_assert_uint_eq(display_width("e\xCC\x81"), 1);
  check_text(cut_to_width("abcdef", 6), "abcdef");
  check_text(cut_to_width("abcdefg", 6), "abc...");
  check_text(cut_to_width("\xE4\xB8\xAD\xE4\xB8\xAD\xE4\xB8\xAD", 5), "\xE4\xB8\xAD...");
  check_text(cut_to_width("abcdefg", 2), "..");
}
END_TEST

START_TEST(messages_are_one_clean_line) {
  check_text(printable_message("a \x1b[2J b\nc"), "a \\x1B[2J b\\x0Ac");
  // Escaped by the daemon already: not twice.
  check_text(printable_message("guest \\x1Bx \\"), "guest \\x1Bx \\");
}
END_TEST

START_TEST(every_code_has_its_exit_code) {
  using enum ErrorCode;
  const auto exit_of = [](command::Code code) {
    const auto error = error_of(code);
    return static_cast<int>(error ? exit_code_for(*error) : ExitCode::kOk);
  };
  ck_assert_int_eq(exit_of(command::CODE_OK), 0);
  ck_assert_int_eq(exit_of(command::CODE_UNSPECIFIED), 1);
  ck_assert_int_eq(exit_of(command::CODE_QUEUED), 1);
  ck_assert_int_eq(exit_of(command::CODE_INTERNAL), 1);
  ck_assert_int_eq(exit_of(static_cast<command::Code>(77)), 1);
  ck_assert_int_eq(exit_of(command::CODE_BAD_REQUEST), 2);
  ck_assert_int_eq(exit_of(command::CODE_REFUSED), 3);
  ck_assert_int_eq(exit_of(command::CODE_DENIED), 3);
  ck_assert_int_eq(exit_of(command::CODE_TIMED_OUT), 4);
  ck_assert_int_eq(exit_of(command::CODE_UNAVAILABLE), 5);
  ck_assert_int_eq(exit_of(command::CODE_NOT_FOUND), 6);
  ck_assert_int_eq(static_cast<int>(ExitCode::kInterrupted), 130);
}
END_TEST

command::Obstacle obstacle(const char* device, const char* guest, std::uint64_t until, std::uint32_t ahead) {
  command::Obstacle out;
  out.set_device(device);
  out.set_guest(guest);
  if (*guest != '\0') {
    out.set_host("host1");
    out.set_token(17);
  }
  out.set_until_unix_s(until);
  out.set_ahead(ahead);
  return out;
}

START_TEST(progress_names_who_is_in_the_way) {
  setenv("TZ", "UTC", 1);
  tzset();
  constexpr std::uint64_t kNow = 1'700'000'000;  // 2023-11-14 22:13:20
  api::AttachProgress progress;
  progress.set_stage("queued");
  check_text(progress_text(progress, "vm2", {"a", "b"}, kNow), "waiting for a, b");
  *progress.add_obstacles() = obstacle("dongle", "vm1", kNow + 60, 2);
  check_text(progress_text(progress, "vm2", {"dongle"}, kNow),
             "waiting for dongle: held by guest vm1 on host1 until 22:14:20 (token 17), 2 ahead");
  *progress.add_obstacles() = obstacle("hsm", "", 0, 0);
  *progress.add_obstacles() = obstacle("probe", "e\x1bvil", kNow + 86400, 0);
  check_text(progress_text(progress, "vm2", {"dongle"}, kNow),
             "waiting for dongle: held by guest vm1 on host1 until 22:14:20 (token 17), 2 ahead; hsm: absent; "
             "probe: held by guest e\\x1Bvil on host1 until 2023-11-15 22:13:20 (token 17)");
  *progress.add_obstacles() = obstacle("p4", "", 0, 1);
  *progress.add_obstacles() = obstacle("p5", "", 0, 1);
  ck_assert_ptr_nonnull(strstr(progress_text(progress, "vm2", {"dongle"}, kNow).c_str(), "; and 1 more"));
  progress.set_stage("attaching");
  check_text(progress_text(progress, "vm2", {"dongle"}, kNow), "attaching dongle to vm2");
}
END_TEST

START_TEST(json_is_protobufs_mapping) {
  record::Lease lease;
  lease.set_token(18'446'744'073'709'551'615ULL);
  lease.set_guest_name("a\"b\x1b");
  lease.set_phase(record::PHASE_GRANTED);
  check_text(*to_json(lease),
             "{\"token\":\"18446744073709551615\",\"guest_name\":\"a\\\"b\\u001b\",\"request_id\":\"\","
             "\"phase\":\"PHASE_GRANTED\",\"granted_unix_s\":\"0\",\"until_unix_s\":\"0\",\"grace_ms\":0,"
             "\"end_reason\":\"\",\"ended_by\":\"\",\"principal\":\"\",\"attach\":false}");
}
END_TEST

START_TEST(milliseconds_are_short) {
  check_text(format_ms(0), "0s");
  check_text(format_ms(40), "40ms");
  check_text(format_ms(500), "0.5s");
  check_text(format_ms(1500), "1.5s");
  check_text(format_ms(10'000), "10s");
  check_text(format_ms(90'500), "1m30s");
}
END_TEST

}  // namespace

TCase* text_cases() {
  TCase* cases = tcase_create("text");
  tcase_add_test(cases, tables_are_aligned_and_escaped);
  tcase_add_test(cases, facts_are_aligned_and_escaped);
  tcase_add_test(cases, widths_count_columns);
  tcase_add_test(cases, messages_are_one_clean_line);
  tcase_add_test(cases, every_code_has_its_exit_code);
  tcase_add_test(cases, progress_names_who_is_in_the_way);
  tcase_add_test(cases, json_is_protobufs_mapping);
  tcase_add_test(cases, milliseconds_are_short);
  return cases;
}
