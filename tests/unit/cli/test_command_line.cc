// Which command lines are right, and what is said about those that are not.
#include <fstream>
#include <sstream>

#include "cli/command_line.h"
#include "cli/shell_words.h"
#include "tests/unit/cli/cases.h"

namespace {

using namespace usblease;
using namespace usblease::cli;

Result<Invocation> read(const Words& words) {
  const auto raw = read_arguments(words);
  if (!raw) return tl::unexpected(raw.error());
  return check_command(*raw, {});
}

Result<Invocation> read(const std::string& line) { return read(split_line(line)->at(0)); }

struct Wrong {
  const char* line;
  const char* message_holds;
};

constexpr Wrong kWrong[] = {
    {"frob", "no verb `frob`"},
    {"host", "`host info`"},
    {"host frob", "`host info`"},
    {"-q", "no verb is given"},
    {"info", "an argument is missing; usage: info DEVICE"},
    {"info a b", "an argument too many"},
    {"list a", "an argument too many"},
    {"attach vm1", "an argument is missing"},
    {"attach '' dongle", "the guest's name is empty"},
    {"info Dongle", "cannot be a device's name"},
    {"info ''", "cannot be a device's name"},
    {"info -- -x", "cannot be a device's name"},
    {"info 'a\x1b[2J'", "a\\x1B[2J"},
    {"info aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "1 to 48"},
    {"attach vm1 a b a", "a is named twice"},
    {"attach vm1 a b c d e f g h i j k l m n o p q", "more than 16 devices"},
    {"list --frob", "--frob"},
    {"list --wait 3", "--wait is not an option of `list`"},
    {"attach vm1 a --wait", "--wait"},
    {"attach vm1 a --wait soon", "--wait: \"soon\" is not a duration"},
    {"attach vm1 a --wait 31d", "--wait: 31d is out of bounds; allowed is 0s to 30d"},
    {"assign vm1 a --wait 3601", "allowed is 0s to 1h"},
    {"attach vm1 a --for 11y", "--for"},
    {"attach vm1 a --priority x", "--priority: \"x\" is not a whole number from -100 to 100"},
    {"attach vm1 a --priority 101", "from -100 to 100"},
    {"attach vm1 a --priority ''", "from -100 to 100"},
    {"events --limit -1", "--limit"},
    {"host install-qemu-module --undo --status", "--undo and --status exclude each other"},
    {"host install-qemu-module now", "an argument too many"},
    {"host info --status", "--status is not an option of `host info`"},
    {"events --limit 99999999999999999999", "--limit"},
    {"revoke a", "needs --reason"},
    {"revoke a --reason ''", "--reason is empty"},
    {"revoke a --reason '\xff'", "not valid UTF-8"},
    {"revoke a --reason b --grace 31d", "--grace"},
    {"extend a", "needs --for"},
    {"lock", "the command stands after --; usage: lock NAME [--wait DURATION] [--priority N] -- COMMAND..."},
    {"lock fw", "the command stands after --"},
    {"lock fw true", "the command stands after --"},
    {"lock fw sh -- -c true", "the command stands after --"},
    {"lock -- fw true", "the command stands after --"},
    {"lock fw --", "an argument is missing"},
    {"lock Fw -- true", "cannot be a lock's name"},
    {"lock lock/fw -- true", "cannot be a lock's name"},
    {"lock fw --wait 31d -- true", "--wait"},
    {"info lock/Fw", "cannot be a device's name"},
    {"list -t 0", "--timeout"},
    {"list -t 2d", "--timeout"},
    {"list -c ''", "--connect"},
    {"list --quiet=yes", "--quiet"},
};

START_TEST(wrong_lines_are_bad_usage_and_say_why) {
  const Wrong& wrong = kWrong[_i];
  const auto result = read(wrong.line);
  ck_assert_msg(!result, "taken: %s", wrong.line);
  ck_assert(result.error().code == ErrorCode::kBadInput);
  ck_assert_msg(result.error().message.find(wrong.message_holds) != std::string::npos, "%s: %s", wrong.line,
                result.error().message.c_str());
}
END_TEST

START_TEST(long_texts_are_bounded) {
  ck_assert(read(Words{"attach", std::string(255, 'g'), "a"}).has_value());
  ck_assert(!read(Words{"attach", std::string(256, 'g'), "a"}));
  ck_assert(read(Words{"revoke", "a", "--reason", std::string(512, 'r')}).has_value());
  ck_assert(!read(Words{"revoke", "a", "--reason", std::string(513, 'r')}));
  ck_assert(read(Words{"list", "-c", "/" + std::string(106, 's')}).has_value());
  ck_assert(!read(Words{"list", "-c", "/" + std::string(107, 's')}));
}
END_TEST

START_TEST(options_stand_anywhere) {
  for (const char* line : {"attach vm1 a b --wait 1m30s --for 2h --priority -5 -q -t 5 -c /s --json",
                           "-q --json -c /s --timeout=5 --wait=90 --for 120m --priority=-5 attach vm1 a b",
                           "attach --wait 90s -q vm1 --json -c /s a --for 2h -t 5s --priority -5 -- b"}) {
    const auto got = read(line);
    ck_assert_msg(got.has_value(), "%s: %s", line, got ? "" : got.error().message.c_str());
    check_text(got->verb->name, "attach");
    check_text(got->guest, "vm1");
    ck_assert(got->devices == (Words{"a", "b"}));
    ck_assert(got->wait_s == 90U && got->for_s == 7200U && got->priority == -5);
    ck_assert(got->globals.quiet && got->globals.json && got->globals.timeout_s == 5);
    check_text(got->globals.socket_path, "/s");
  }
}
END_TEST

// What stands after -- is the command's, whatever it looks like.
START_TEST(a_command_keeps_its_options) {
  const auto result = read("lock --wait 5 fw --priority 3 -- sh --wait 7 -c 'exit 1' -- x");
  ck_assert_msg(result.has_value(), "%s", result ? "" : result.error().message.c_str());
  ck_assert_uint_eq(result->wait_s.value_or(0), 5);
  ck_assert_int_eq(result->priority.value_or(0), 3);
  const std::vector<std::string> words = {"fw", "sh", "--wait", "7", "-c", "exit 1", "--", "x"};
  ck_assert(result->words == words);
  ck_assert(result->globals.socket_path == kDefaultSocket);
}
END_TEST

START_TEST(a_lock_stands_where_a_device_may) {
  for (const char* line : {"info lock/fw", "queue lock/fw", "revoke lock/fw --reason x"}) {
    const auto result = read(line);
    ck_assert_msg(result.has_value(), "%s", line);
    ck_assert(result->devices == std::vector<std::string>{"lock/fw"});
  }
}
END_TEST

START_TEST(defaults_hold_where_nothing_is_given) {
  const auto got = read("host info");
  ck_assert(got.has_value());
  check_text(got->verb->name, "host info");
  check_text(got->globals.socket_path, "/run/usblease/usbleased.sock");
  ck_assert(!got->globals.quiet && !got->globals.json && !got->wait_s && !got->limit && !got->follow);
  Globals defaults;
  defaults.quiet = true;
  defaults.socket_path = "/other";
  const auto inherited = check_command(*read_arguments({"list", "--json"}), defaults);
  ck_assert(inherited->globals.quiet && inherited->globals.json);
  check_text(inherited->globals.socket_path, "/other");
}
END_TEST

START_TEST(help_needs_nothing_else) {
  ck_assert(read("attach -h")->help);
  ck_assert(read("-h")->help);
  ck_assert(read("-V")->version);
  ck_assert(read("help")->words.empty());
  ck_assert(read("help host info")->words == (Words{"host", "info"}));
  for (const auto& verb : all_verbs()) ck_assert_msg(*verb.summary != '\0', "%s has no help", verb.name);
}
END_TEST

START_TEST(the_man_page_knows_every_verb_and_option) {
  std::ifstream file(USBLEASE_MAN_PAGE);
  std::stringstream page;
  page << file.rdbuf();
  const std::string text = page.str();
  for (const auto& verb : all_verbs()) {
    const std::string heading = "\n" + std::string(verb.name);
    ck_assert_msg(text.find(heading + "\n---") != std::string::npos || text.find(heading + " ") != std::string::npos,
                  "%s", verb.name);
  }
  for (const auto& option : all_options()) {
    ck_assert_msg(text.find(std::string("--") + option.long_name) != std::string::npos, "%s", option.long_name);
  }
}
END_TEST

START_TEST(a_guest_may_be_called_anything) {
  check_text(read("detach 'my guest; \xC3\xBC' dongle")->guest, "my guest; \xC3\xBC");
  check_text(read("detach -- --json dongle")->guest, "--json");
}
END_TEST

}  // namespace

TCase* command_line_cases() {
  TCase* cases = tcase_create("command line");
  tcase_add_loop_test(cases, wrong_lines_are_bad_usage_and_say_why, 0, static_cast<int>(std::size(kWrong)));
  tcase_add_test(cases, long_texts_are_bounded);
  tcase_add_test(cases, options_stand_anywhere);
  tcase_add_test(cases, a_command_keeps_its_options);
  tcase_add_test(cases, a_lock_stands_where_a_device_may);
  tcase_add_test(cases, defaults_hold_where_nothing_is_given);
  tcase_add_test(cases, help_needs_nothing_else);
  tcase_add_test(cases, the_man_page_knows_every_verb_and_option);
  tcase_add_test(cases, a_guest_may_be_called_anything);
  return cases;
}
