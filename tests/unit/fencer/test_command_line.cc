// What usblease-fence takes, and what it says of the rest.
#include "daemon/fencer/command_line.h"
#include "tests/lib/check_suite.h"
#include "tests/unit/common/check_run.h"

using namespace usblease;
using fencer::parse_command_line;

namespace {

START_TEST(nodes) {
  const struct {
    const char* text;
    fence::DeviceNumber device;
  } good[] = {{"/dev/bus/usb/001/001", 189U << 20U},
              {"/dev/bus/usb/001/005", (189U << 20U) | 4U},
              {"002/003", (189U << 20U) | 130U},
              {"2/127", (189U << 20U) | 254U}};
  for (const auto& row : good) {
    const auto device = fencer::parse_node(row.text);
    ck_assert_ok(device);
    ck_assert_msg(*device == row.device, "%s is %s", row.text, fence::to_text(*device).c_str());
  }
  for (const char* bad : {"", "/", "1", "1/", "/1", "a/b", "1/2/3", "0/1", "1/0", "1/128", "512/1", "-1/2", "1/+2",
                          "/dev/sda", "/dev/bus/usb/001", "99999999999/1"}) {
    ck_assert_msg(!fencer::parse_node(bad), "%s", bad);
  }
}
END_TEST

START_TEST(complete_lines) {
  const auto line =
      parse_command_line({"arm", "1/5", "--token", "18446744073709551615", "--for-ms", "2000", "--pid", "7"});
  ck_assert_ok(line);
  ck_assert_text_eq(line->verb, "arm");
  ck_assert(line->device == ((189U << 20U) | 4U));
  ck_assert(line->token == ~std::uint64_t{0});
  ck_assert(line->for_ms == 2000 && line->pid == 7);
  for (const char* alone : {"serve", "classify", "load", "unload", "status"}) ck_assert_ok(parse_command_line({alone}));
  for (const char* one : {"manage", "forget", "bind", "unbind"}) ck_assert_ok(parse_command_line({one, "1/5"}));
}
END_TEST

START_TEST(what_is_wrong_is_said) {
  const struct {
    std::vector<std::string> words;
    const char* part;
  } table[] = {
      {{}, "what is to be done?"},
      {{"fly"}, "there is no verb fly"},
      {{"load", "1/5"}, "load takes no device"},
      {{"manage"}, "manage takes one device"},
      {{"manage", "1/5", "1/6"}, "one device at a time"},
      {{"manage", "1/5", "--token", "1"}, "manage takes no --token"},
      {{"disarm", "1/5"}, "disarm needs --token"},
      {{"disarm", "1/5", "--token"}, "--token needs a value"},
      {{"disarm", "1/5", "--token", "0"}, "--token takes a whole number from 1"},
      {{"disarm", "1/5", "--token", "18446744073709551616"}, "not \"18446744073709551616\""},
      {{"disarm", "1/5", "--tolken", "1"}, "there is no option --tolken"},
      {{"extend", "1/5", "--token", "1", "--for-ms", "86400001"}, "from 1 to 86400000"},
      {{"extend", "1/5", "--token", "1"}, "extend needs --for-ms"},
      {{"arm", "1/5", "--token", "1", "--for-ms", "1"}, "arm needs --cgroup or --pid"},
      {{"arm", "1/5", "--token", "1", "--for-ms", "1", "--pid", "1 "}, "not \"1 \""},
      {{"fly\x1b[31m"}, "fly\\x1B[31m"},
  };
  for (const auto& row : table) ck_assert_fails(parse_command_line(row.words), ErrorCode::kBadInput, row.part);
}
END_TEST

}  // namespace

int main() { return test::run_suite("command line", {nodes, complete_lines, what_is_wrong_is_said}); }
