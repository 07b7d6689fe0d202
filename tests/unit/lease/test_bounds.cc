// Every field of every command has a bound, and what is out of bounds changes nothing and is named.
#include <functional>

#include "daemon/lease/fields.h"
#include "daemon/lease/validate.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;
using command::Command;

const char* const kNotUtf8 = "a\xff";

std::string long_text(std::size_t bytes) { return std::string(bytes, 'x'); }

Command acquire() {
  Command command;
  command::Acquire& c = *command.mutable_acquire();
  c.set_request_id("r1");
  *c.mutable_start() = start_of("web", "h1");
  c.set_guest_name("web");
  c.add_devices("dongle");
  c.set_wait_ms(kWaitMaxMs);
  c.set_duration_s(kDurationMaxS);
  c.set_priority(kPriorityMax);
  c.set_principal("root@h1");
  return command;
}

Command report() {
  Command command;
  command::ReportDevice& c = *command.mutable_report_device();
  c.set_device("dongle");
  c.mutable_presence()->mutable_instance()->set_host_id("h1");
  c.mutable_presence()->mutable_instance()->set_boot_id(boot_of("h1"));
  c.mutable_presence()->set_present(true);
  c.mutable_presence()->mutable_identity()->set_serial("S/N 7");
  c.mutable_policy()->set_isolation_ms(kIsolationMaxMs);
  return command;
}

Command register_host() {
  Command command;
  command::RegisterHost& c = *command.mutable_register_host();
  c.mutable_host()->set_id("h1");
  c.mutable_host()->set_boot_id(boot_of("h1"));
  c.set_has_floors(true);
  command::Floor& floor = *c.add_floors();
  floor.set_device("dongle");
  floor.set_armed(2);
  floor.set_fenced(1);
  floor.set_boot_id(boot_of("h1"));
  return command;
}

Command with(const std::function<void(Command&)>& fill) {
  Command command;
  fill(command);
  return command;
}

Command revoke() {
  return with([](Command& c) {
    c.mutable_revoke()->set_device("dongle");
    c.mutable_revoke()->set_grace_ms(kGraceMaxMs);
  });
}

Command confirm() {
  return with([](Command& c) {
    c.mutable_confirm_fenced()->set_device("dongle");
    c.mutable_confirm_fenced()->mutable_instance()->set_host_id("h1");
    c.mutable_confirm_fenced()->mutable_instance()->set_boot_id(boot_of("h1"));
  });
}

Command release() {
  return with([](Command& c) { *c.mutable_release()->mutable_start() = start_of("web", "h1"); });
}

Command cancel() {
  return with([](Command& c) { c.mutable_cancel_request()->set_request_id("r1"); });
}

Command extend() {
  return with([](Command& c) {
    c.mutable_extend()->set_device("dongle");
    c.mutable_extend()->set_duration_s(kDurationMaxS);
  });
}

Command host_gone() {
  return with([](Command& c) {
    c.mutable_host_gone()->set_host_id("h1");
    c.mutable_host_gone()->set_boot_id(boot_of("h1"));
  });
}

Command declare_dead() {
  return with([](Command& c) { c.mutable_declare_dead()->set_host_id("h1"); });
}

Command new_epoch() {
  return with([](Command& c) { c.mutable_new_epoch()->set_epoch(kEpochMax); });
}

// A command of `make`, spoilt by `spoil`, is bad input.
struct Bad {
  const char* what;
  Command (*make)();
  std::function<void(Command&)> spoil;
};

const std::vector<Bad>& bad_commands() {
  static const std::vector<Bad> kBad = {
      {"no body", [] { return Command(); }, [](Command&) {}},
      {"no request id", acquire, [](Command& c) { c.mutable_acquire()->clear_request_id(); }},
      {"long request id", acquire, [](Command& c) { c.mutable_acquire()->set_request_id(long_text(65)); }},
      {"path as request id", acquire, [](Command& c) { c.mutable_acquire()->set_request_id("../x"); }},
      {"no start", acquire, [](Command& c) { c.mutable_acquire()->clear_start(); }},
      {"no guest", acquire, [](Command& c) { c.mutable_acquire()->mutable_start()->clear_guest_uuid(); }},
      {"upper-case UUID", acquire,
       [](Command& c) {
         c.mutable_acquire()->mutable_start()->set_guest_uuid("AAAAAAAA-2222-4333-8444-555555555555");
       }},
      {"UUID of dashes", acquire,
       [](Command& c) { c.mutable_acquire()->mutable_start()->set_guest_uuid(std::string(36, '-')); }},
      {"short nonce", acquire, [](Command& c) { c.mutable_acquire()->mutable_start()->set_nonce("123"); }},
      {"nonce not hex", acquire,
       [](Command& c) { c.mutable_acquire()->mutable_start()->set_nonce("000000000000000g"); }},
      {"no host", acquire, [](Command& c) { c.mutable_acquire()->mutable_start()->clear_host_id(); }},
      {"no boot", acquire, [](Command& c) { c.mutable_acquire()->mutable_start()->clear_boot_id(); }},
      {"long guest name", acquire, [](Command& c) { c.mutable_acquire()->set_guest_name(long_text(256)); }},
      {"guest name not UTF-8", acquire, [](Command& c) { c.mutable_acquire()->set_guest_name(kNotUtf8); }},
      {"no devices", acquire, [](Command& c) { c.mutable_acquire()->clear_devices(); }},
      {"17 devices", acquire,
       [](Command& c) {
         for (int i = 0; i < 16; ++i) c.mutable_acquire()->add_devices("d" + std::to_string(i));
       }},
      {"a device twice", acquire, [](Command& c) { c.mutable_acquire()->add_devices("dongle"); }},
      {"empty device", acquire, [](Command& c) { c.mutable_acquire()->add_devices(""); }},
      {"long device", acquire, [](Command& c) { c.mutable_acquire()->add_devices(long_text(49)); }},
      {"upper-case device", acquire, [](Command& c) { c.mutable_acquire()->add_devices("Dongle"); }},
      {"device with a slash", acquire, [](Command& c) { c.mutable_acquire()->add_devices("a/b"); }},
      {"device with a dash first", acquire, [](Command& c) { c.mutable_acquire()->add_devices("-a"); }},
      {"priority above", acquire, [](Command& c) { c.mutable_acquire()->set_priority(kPriorityMax + 1); }},
      {"priority below", acquire, [](Command& c) { c.mutable_acquire()->set_priority(-kPriorityMax - 1); }},
      {"duration", acquire, [](Command& c) { c.mutable_acquire()->set_duration_s(kDurationMaxS + 1); }},
      {"wait", acquire, [](Command& c) { c.mutable_acquire()->set_wait_ms(kWaitMaxMs + 1); }},
      {"principal", acquire, [](Command& c) { c.mutable_acquire()->set_principal(long_text(256)); }},

      {"reported device", report, [](Command& c) { c.mutable_report_device()->clear_device(); }},
      {"reported home", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->mutable_instance()->clear_host_id(); }},
      {"reported boot", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->mutable_instance()->set_boot_id("x"); }},
      {"serial not UTF-8", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->mutable_identity()->set_serial(kNotUtf8); }},
      {"long serial", report,
       [](Command& c) {
         c.mutable_report_device()->mutable_presence()->mutable_identity()->set_serial(long_text(256));
       }},
      {"long address", report,
       [](Command& c) {
         c.mutable_report_device()->mutable_presence()->mutable_identity()->set_address(long_text(513));
       }},
      {"vendor", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->mutable_identity()->set_vendor(0x10000); }},
      {"product", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->mutable_identity()->set_product(0x10000); }},
      {"kind", report,
       [](Command& c) {
         c.mutable_report_device()->mutable_presence()->mutable_identity()->set_kind(
             static_cast<record::DeviceKind>(9));
       }},
      {"long detail", report,
       [](Command& c) { c.mutable_report_device()->mutable_presence()->set_detail(long_text(513)); }},
      {"257 guests", report,
       [](Command& c) {
         for (int i = 0; i < 257; ++i) c.mutable_report_device()->mutable_policy()->add_guests("g");
       }},
      {"long guest of a policy", report,
       [](Command& c) { c.mutable_report_device()->mutable_policy()->add_guests(long_text(256)); }},
      {"policy too great for a record", report,
       [](Command& c) {
         for (int i = 0; i < 256; ++i) c.mutable_report_device()->mutable_policy()->add_guests(long_text(255));
       }},
      {"until_max", report,
       [](Command& c) { c.mutable_report_device()->mutable_policy()->set_until_max_s(kDurationMaxS + 1); }},
      {"isolation", report,
       [](Command& c) { c.mutable_report_device()->mutable_policy()->set_isolation_ms(kIsolationMaxMs + 1); }},
      {"least rung", report,
       [](Command& c) { c.mutable_report_device()->mutable_policy()->set_min_rung(static_cast<record::Rung>(8)); }},

      {"host", register_host, [](Command& c) { c.mutable_register_host()->mutable_host()->set_id(".h"); }},
      {"host's boot", register_host, [](Command& c) { c.mutable_register_host()->mutable_host()->clear_boot_id(); }},
      {"host's name", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_host()->set_name(long_text(256)); }},
      {"machine", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_host()->set_machine_uuid(long_text(65)); }},
      {"version", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_host()->set_version(long_text(65)); }},
      {"17 rungs", register_host,
       [](Command& c) {
         for (int i = 0; i < 17; ++i) c.mutable_register_host()->mutable_host()->add_rungs(record::RUNG_RELAY);
       }},
      {"unknown rung", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_host()->add_rungs(static_cast<record::Rung>(9)); }},
      {"floor without a device", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_floors(0)->clear_device(); }},
      {"armed floor without a boot", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_floors(0)->clear_boot_id(); }},
      {"armed floor", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_floors(0)->set_armed(kTokenMax + 1); }},
      {"fenced floor", register_host,
       [](Command& c) { c.mutable_register_host()->mutable_floors(0)->set_fenced(kTokenMax + 1); }},
      {"4097 floors", register_host,
       [](Command& c) {
         for (int i = 0; i < 4096; ++i) c.mutable_register_host()->add_floors()->set_device("d" + std::to_string(i));
       }},

      {"revoked device", revoke, [](Command& c) { c.mutable_revoke()->set_device("no such name!"); }},
      {"grace", revoke, [](Command& c) { c.mutable_revoke()->set_grace_ms(kGraceMaxMs + 1); }},
      {"reason", revoke, [](Command& c) { c.mutable_revoke()->set_reason(long_text(513)); }},
      {"reason not UTF-8", revoke, [](Command& c) { c.mutable_revoke()->set_reason(kNotUtf8); }},
      {"who revokes", revoke, [](Command& c) { c.mutable_revoke()->set_principal(long_text(256)); }},

      {"confirmed device", confirm, [](Command& c) { c.mutable_confirm_fenced()->clear_device(); }},
      {"confirmed instance", confirm, [](Command& c) { c.mutable_confirm_fenced()->clear_instance(); }},
      {"evidence", confirm, [](Command& c) { c.mutable_confirm_fenced()->set_how(long_text(513)); }},

      {"released start", release, [](Command& c) { c.mutable_release()->clear_start(); }},
      {"released devices", release, [](Command& c) { c.mutable_release()->add_devices("A"); }},
      {"release's reason", release, [](Command& c) { c.mutable_release()->set_reason(long_text(513)); }},
      {"release's principal", release, [](Command& c) { c.mutable_release()->set_principal(long_text(256)); }},

      {"cancelled request", cancel, [](Command& c) { c.mutable_cancel_request()->clear_request_id(); }},
      {"cancelled with OK", cancel, [](Command& c) { c.mutable_cancel_request()->set_code(command::CODE_OK); }},
      {"cancelled with QUEUED", cancel, [](Command& c) { c.mutable_cancel_request()->set_code(command::CODE_QUEUED); }},
      {"cancelled with an unknown code", cancel,
       [](Command& c) { c.mutable_cancel_request()->set_code(static_cast<command::Code>(77)); }},
      {"cancel's reason", cancel, [](Command& c) { c.mutable_cancel_request()->set_reason(long_text(513)); }},

      {"extended device", extend, [](Command& c) { c.mutable_extend()->clear_device(); }},
      {"extended by", extend, [](Command& c) { c.mutable_extend()->set_duration_s(kDurationMaxS + 1); }},
      {"who extends", extend, [](Command& c) { c.mutable_extend()->set_principal(long_text(256)); }},

      {"gone host", host_gone, [](Command& c) { c.mutable_host_gone()->clear_host_id(); }},
      {"gone boot", host_gone, [](Command& c) { c.mutable_host_gone()->clear_boot_id(); }},
      {"dead host", declare_dead, [](Command& c) { c.mutable_declare_dead()->clear_host_id(); }},
      {"dead boot", declare_dead, [](Command& c) { c.mutable_declare_dead()->set_boot_id("x"); }},
      {"who declares", declare_dead, [](Command& c) { c.mutable_declare_dead()->set_principal(long_text(256)); }},
      {"epoch", new_epoch, [](Command& c) { c.mutable_new_epoch()->set_epoch(kEpochMax + 1); }},
      {"who repairs", new_epoch, [](Command& c) { c.mutable_new_epoch()->set_principal(kNotUtf8); }},
      {"forgotten device", [] { return with([](Command& c) { c.mutable_forget_device()->set_host_id("h1"); }); },
       [](Command&) {}},
      {"forgetting host", [] { return with([](Command& c) { c.mutable_forget_device()->set_device("d"); }); },
       [](Command&) {}},
      {"grace over of nothing", [] { return with([](Command& c) { c.mutable_grace_over(); }); }, [](Command&) {}},
      {"until over of nothing", [] { return with([](Command& c) { c.mutable_until_over(); }); }, [](Command&) {}},
  };
  return kBad;
}

START_TEST(what_is_within_the_bounds_is_valid) {
  for (Command (*make)() :
       {acquire, report, register_host, revoke, confirm, release, cancel, extend, host_gone, declare_dead, new_epoch}) {
    const auto valid = validate(make());
    ck_assert_msg(valid.has_value(), "%s", valid ? "" : valid.error().message.c_str());
  }
}
END_TEST

START_TEST(what_is_out_of_bounds_is_refused) {
  const Bad& bad = bad_commands().at(static_cast<std::size_t>(_i));
  Command command = bad.make();
  bad.spoil(command);
  World w;
  w.host("h1");
  w.plug("dongle", "h1");
  const auto before = entries_of(w.state());
  const command::Reply& reply = w.apply(command);
  ck_assert_msg(reply.status().code() == command::CODE_BAD_REQUEST, "%s: %s", bad.what,
                reply.status().message().c_str());
  ck_assert_msg(reply.status().message().find("allowed") != std::string::npos, "%s", reply.status().message().c_str());
  ck_assert(w.last.changes.empty());
  ck_assert(entries_of(w.state()) == before);
}
END_TEST

// A field that this version does not know is stored with the rest, so it counts.
START_TEST(unknown_fields_count_towards_the_size) {
  Command command = acquire();
  std::string start = command.acquire().start().SerializeAsString();
  start += "\x9a\x06\xe8\x07" + long_text(1000);  // field 99, 1000 bytes
  ck_assert(command.mutable_acquire()->mutable_start()->ParseFromString(start));
  ck_assert(!validate(command).has_value());
}
END_TEST

START_TEST(utf8_is_checked_as_rfc_3629_says) {
  const auto valid = [](const char* text) { return check_text("x", text, 100).has_value(); };
  for (const char* good : {"", "plain", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "für 東京 🔑"})
    ck_assert_msg(valid(good), "%s", good);
  for (const char* wrong : {"\x80", "\xc0\xaf", "\xc1\xbf", "\xc2", "\xe0\x9f\xbf", "\xe0\xa0", "\xed\xa0\x80",
                            "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xc3(",
                            "\xe2\x82"
                            "a"})
    ck_assert_msg(!valid(wrong), "%s", wrong);
}
END_TEST

START_TEST(a_text_is_cut_between_characters) {
  ASSERT_TEXT(cut_text("abc", 3), "abc");
  ASSERT_TEXT(cut_text("abcd", 3), "abc");
  ASSERT_TEXT(cut_text("ab\xc3\xbc", 3), "ab");
  ASSERT_TEXT(cut_text("\xf0\x9f\x94\x91", 3), "");
}
END_TEST

// The longest reason, behind a prefix of ours, is still within the bounds of its record.
START_TEST(a_long_detail_stays_within_its_record) {
  World w;
  w.host("h1");
  w.plug("dongle", "h1");
  w.acquire("r1", "web@h1", {"dongle"});
  Command command = report();
  command.mutable_report_device()->mutable_presence()->set_present(false);
  command.mutable_report_device()->mutable_presence()->mutable_instance()->set_counter(1);
  std::string detail;
  while (detail.size() < 510) detail += "\xc3\xbc";
  command.mutable_report_device()->mutable_presence()->set_detail(detail);
  ASSERT_OK(w.apply(command).status().code());
  ck_assert_uint_gt(w.lease("dongle").end_reason().size(), 500);
  const auto loaded = load(entries_of(w.state()));
  ck_assert_msg(loaded.has_value(), "%s", loaded ? "" : loaded.error().message.c_str());
}
END_TEST

}  // namespace

int main() {
  Suite* suite = suite_create("bounds");
  TCase* tcase = tcase_create("bounds");
  tcase_set_timeout(tcase, 240);
  tcase_add_test(tcase, what_is_within_the_bounds_is_valid);
  tcase_add_loop_test(tcase, what_is_out_of_bounds_is_refused, 0, static_cast<int>(bad_commands().size()));
  for (const TTest* test : {unknown_fields_count_towards_the_size, utf8_is_checked_as_rfc_3629_says,
                            a_text_is_cut_between_characters, a_long_detail_stays_within_its_record})
    tcase_add_test(tcase, test);
  suite_add_tcase(suite, tcase);
  SRunner* runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
