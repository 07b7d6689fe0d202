#include "daemon/fencer/command_line.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "common/text.h"

namespace usblease::fencer {
namespace {

constexpr const char* kNodePrefix = "/dev/bus/usb/";
constexpr std::uint64_t kForMsMax = 24ULL * 3600 * 1000;

struct Verb {
  const char* name;
  bool needs_node;
  bool needs_token;
  bool needs_for;
  bool needs_holder;
  const char* help;
};

constexpr std::array<Verb, 12> kVerbs = {{
    {"serve", false, false, false, false, "unbind every managed device that has no live lease, until told to end"},
    {"classify", false, false, false, false,
     "look at what is plugged in, and refuse what the configuration manages; udev runs it for each device"},
    {"load", false, false, false, false, "put the fence into the kernel; it stays when this program has ended"},
    {"unload", false, false, false, false, "take it out again: nothing is refused any more"},
    {"status", false, false, false, false, "whether it is there, and what it knows"},
    {"manage", true, false, false, false, "refuse every use of the device without a lease"},
    {"forget", true, false, false, false, "no longer look at the device"},
    {"arm", true, true, true, true, "let the holder use the device for so long"},
    {"extend", true, true, true, false, "from now on for so long"},
    {"disarm", true, true, false, false, "end this lease, and all before it"},
    {"unbind", true, false, false, false, "take the device from its driver: every open handle is dead for good"},
    {"bind", true, false, false, false, "give it back"},
}};

const Verb* find_verb(const std::string& name) {
  const auto* found = std::find_if(kVerbs.begin(), kVerbs.end(), [&](const Verb& verb) { return name == verb.name; });
  return found == kVerbs.end() ? nullptr : found;
}

tl::unexpected<Error> bad(const std::string& what) { return fail(ErrorCode::kBadInput, what + "\n" + usage()); }

Result<std::uint64_t> parse_number(const std::string& option, const std::string& text, std::uint64_t most) {
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || number < 1 || number > most) {
    return fail(ErrorCode::kBadInput, option + " takes a whole number from 1 to " + std::to_string(most) + ", not \"" +
                                          escape_text(text) + "\"");
  }
  return number;
}

Result<void> take_option(const std::string& option, const std::string& value, CommandLine* out) {
  if (option == "--cgroup") {
    out->cgroup = value;
    return {};
  }
  const bool known = option == "--token" || option == "--for-ms" || option == "--pid";
  if (!known) return bad("there is no option " + escape_text(option));
  const std::uint64_t most = option == "--token"    ? std::numeric_limits<std::uint64_t>::max()
                             : option == "--for-ms" ? kForMsMax
                                                    : std::numeric_limits<std::int32_t>::max();
  const auto number = parse_number(option, value, most);
  if (!number) return tl::unexpected(number.error());
  if (option == "--token") out->token = *number;
  if (option == "--for-ms") out->for_ms = *number;
  if (option == "--pid") out->pid = static_cast<std::uint32_t>(*number);
  return {};
}

Result<void> check_complete(const Verb& verb, const CommandLine& line) {
  const bool holder = line.pid != 0 || !line.cgroup.empty();
  if (verb.needs_node != (line.device != 0))
    return bad(std::string(verb.name) + " takes " + (verb.needs_node ? "one device" : "no device"));
  if (verb.needs_token != (line.token != 0))
    return bad(std::string(verb.name) + (verb.needs_token ? " needs" : " takes no") + " --token");
  if (verb.needs_for != (line.for_ms != 0))
    return bad(std::string(verb.name) + (verb.needs_for ? " needs" : " takes no") + " --for-ms");
  if (verb.needs_holder != holder)
    return bad(std::string(verb.name) + (verb.needs_holder ? " needs" : " takes no") + " --cgroup or --pid");
  return {};
}

}  // namespace

std::string usage() {
  std::string out = "usage: usblease-fence VERB [DEVICE] [OPTION…]      DEVICE: /dev/bus/usb/BUS/NUMBER\n";
  for (const Verb& verb : kVerbs) {
    std::string left = std::string("  ") + verb.name;
    if (verb.needs_node) left += " DEVICE";
    if (verb.needs_token) left += " --token N";
    if (verb.needs_for) left += " --for-ms N";
    if (verb.needs_holder) left += " --cgroup DIR|--pid N";
    out += left + "\n        " + verb.help + "\n";
  }
  out += "usbleased does all of this by itself; by hand it is for tests and for when nothing else works.";
  return out;
}

Result<fence::DeviceNumber> parse_node(const std::string& text) {
  const std::string prefix = kNodePrefix;
  const std::string rest = text.rfind(prefix, 0) == 0 ? text.substr(prefix.size()) : text;
  const auto slash = rest.find('/');
  std::array<std::uint32_t, 2> numbers{};
  if (slash != std::string::npos) {
    const std::array<std::string, 2> parts = {rest.substr(0, slash), rest.substr(slash + 1)};
    bool good = true;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto* end = parts[i].data() + parts[i].size();
      const auto parsed = std::from_chars(parts[i].data(), end, numbers[i]);
      good = good && parsed.ec == std::errc() && parsed.ptr == end;
    }
    if (good) return fence::device_number(numbers[0], numbers[1]);
  }
  return fail(ErrorCode::kBadInput,
              "\"" + escape_text(text) + "\" is no usbfs node; one is named like /dev/bus/usb/001/004");
}

Result<CommandLine> parse_command_line(const std::vector<std::string>& words) {
  if (words.empty()) return bad("what is to be done?");
  CommandLine out;
  out.verb = words[0];
  const Verb* verb = find_verb(out.verb);
  if (verb == nullptr) return bad("there is no verb " + escape_text(out.verb));
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (words[i].rfind("--", 0) == 0) {
      if (i + 1 == words.size()) return bad(escape_text(words[i]) + " needs a value");
      if (auto taken = take_option(words[i], words[i + 1], &out); !taken) return tl::unexpected(taken.error());
      ++i;
      continue;
    }
    if (out.device != 0) return bad("one device at a time");
    const auto device = parse_node(words[i]);
    if (!device) return tl::unexpected(device.error());
    out.device = *device;
  }
  if (auto complete = check_complete(*verb, out); !complete) return tl::unexpected(complete.error());
  return out;
}

}  // namespace usblease::fencer
