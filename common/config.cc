#include "common/config.h"

#include <fcntl.h>
#include <glib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "common/fd.h"
#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease {
namespace {

constexpr std::size_t kConfigBytesMax = std::size_t{1024} * 1024;
constexpr std::size_t kDevicesMax = 1024;
// sun_path holds 107 bytes: RUN_DIR + "/guests/" + UUID + "/" + device name.
constexpr std::size_t kRunDirAndNameMax = 107 - 8 - 36 - 1;
constexpr std::size_t kLeastNameRoom = 16;

constexpr std::array kRungNames = {"none", "admission", "relay", "qemu", "kernel", "unbind", "destroy", "watchdog"};

struct Place {
  std::string path;
  std::size_t line = 0;
  std::string group;
  std::string key;

  [[nodiscard]] tl::unexpected<Error> bad(const std::string& why) const {
    std::string where = path + ":" + std::to_string(line) + ": [" + escape_text(group) + "]";
    if (!key.empty()) where += " " + escape_text(key);
    return fail(ErrorCode::kBadInput, where + ": " + why);
  }
};

struct Setting {
  Place place;
  std::string value;
};

std::string trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\r\v\f";
  const auto first = text.find_first_not_of(kSpace);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool is_key_character(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

// GKeyFile knows no line numbers and merges what is given twice, so groups and keys are found here.
Result<std::vector<Setting>> find_settings(const std::string& text, const std::string& path) {
  std::vector<Setting> settings;
  std::set<std::string> groups;
  std::set<std::pair<std::string, std::string>> keys;
  std::istringstream lines(text);
  std::string line;
  std::string group;
  for (std::size_t number = 1; std::getline(lines, line); ++number) {
    const auto bad = [&](const std::string& why) {
      std::string message = path;
      message += ":" + std::to_string(number) + ": " + why;
      return fail(ErrorCode::kBadInput, message);
    };
    if (line.find('\0') != std::string::npos) return bad("this line holds a NUL byte");
    line = trimmed(line);
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == '[') {
      const bool clean = std::none_of(line.begin(), line.end(), [](char c) { return g_ascii_iscntrl(c) != FALSE; });
      if (line.size() < 3 || line.find(']') != line.size() - 1 || !clean) return bad("a group is written as [NAME]");
      group = line.substr(1, line.size() - 2);
      const Place place{path, number, group, ""};
      if (!groups.insert(group).second) return place.bad("this group is given twice; join the two");
      settings.push_back({place, ""});
      continue;
    }
    if (groups.empty()) return bad("the first line that is no comment must be a [group]");
    const auto equals = line.find('=');
    const std::string key = trimmed(line.substr(0, equals));
    if (equals == std::string::npos || key.empty()) {
      return bad("\"" + escape_text(line.substr(0, 64)) + "\" is not key=value, [group] or # comment");
    }
    const Place place{path, number, group, key};
    if (!std::all_of(key.begin(), key.end(), is_key_character)) return place.bad("a key consists of a-z 0-9 and _");
    if (!keys.insert({group, key}).second) return place.bad("this key is given twice; keep one");
    settings.push_back({place, ""});
  }
  return settings;
}

// GKeyFile decides what a value is (escapes, encoding).
Result<std::vector<Setting>> read_settings(const std::string& text, const std::string& path) {
  auto settings = find_settings(text, path);
  if (!settings || settings->empty()) return settings;
  const GPtr<GKeyFile, g_key_file_unref> file(g_key_file_new());
  GErrorOut error;
  if (g_key_file_load_from_data(file.get(), text.c_str(), text.size(), G_KEY_FILE_NONE, error.out()) == FALSE) {
    return fail(ErrorCode::kBadInput, path + ": " + escape_text(error.message()));
  }
  for (Setting& s : *settings) {
    if (s.place.key.empty()) continue;
    const GChars value(g_key_file_get_string(file.get(), s.place.group.c_str(), s.place.key.c_str(), error.out()));
    if (value == nullptr || error) return s.place.bad(escape_text(error.message()));
    s.value = value.get();
  }
  return settings;
}

// Where `key` is set; where it is not, its group, or the file.
Place place_of(const std::vector<Setting>& settings, const std::string& path, const std::string& group,
               const std::string& key) {
  Place found{path, 1, group, key};
  for (const Setting& s : settings) {
    if (s.place.group != group || (!s.place.key.empty() && s.place.key != key)) continue;
    found.line = s.place.line;
    if (!s.place.key.empty()) break;
  }
  return found;
}

using Setter = std::function<Result<void>(const Setting&)>;

Setter absolute_path(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (s.value.empty() || s.value[0] != '/') return s.place.bad("an absolute path is needed");
    out = s.value;
    while (out.size() > 1 && out.back() == '/') out.pop_back();
    return {};
  };
}

Setter any_text(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (s.value.empty() || s.value.size() > 255) return s.place.bad("1 to 255 characters are needed");
    out = s.value;
    return {};
  };
}

Setter identifier(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (!is_identifier(s.value))
      return s.place.bad("1 to 64 of A-Z a-z 0-9 . _ - are allowed, beginning with none of . -");
    out = s.value;
    return {};
  };
}

template <typename Number>
Setter number_between(Number& out, Number least, Number most) {
  return [&out, least, most](const Setting& s) -> Result<void> {
    Number number = 0;
    const char* const end = s.value.data() + s.value.size();
    const auto parsed = std::from_chars(s.value.data(), end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end || number < least || number > most) {
      return s.place.bad("a whole number from " + std::to_string(least) + " to " + std::to_string(most) + " is needed");
    }
    out = number;
    return {};
  };
}

template <typename Enum>
Setter one_of(Enum& out, std::vector<std::pair<std::string, Enum>> allowed) {
  return [&out, allowed = std::move(allowed)](const Setting& s) -> Result<void> {
    std::string names;
    for (const auto& [name, value] : allowed) {
      if (s.value == name) {
        out = value;
        return {};
      }
      names += (names.empty() ? "" : ", ") + name;
    }
    return s.place.bad("allowed are: " + names);
  };
}

Result<std::uint32_t> parse_hex16(const std::string& text) {
  std::uint32_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (text.size() != 4 || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
    return fail(ErrorCode::kBadInput, "four hex digits are needed");
  }
  return number;
}

Setter usb_match(std::optional<UsbMatch>& out) {
  return [&out](const Setting& s) -> Result<void> {
    const auto bad = [&] {
      return s.place.bad("write VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL, for example 0529:0001");
    };
    if (s.value.size() < 9 || s.value[4] != ':') return bad();
    const auto vendor = parse_hex16(s.value.substr(0, 4));
    const auto product = parse_hex16(s.value.substr(5, 4));
    if (!vendor || !product) return bad();
    UsbMatch match{*vendor, *product, ""};
    if (s.value.size() > 9) {
      if (s.value[9] != ':' || s.value.size() == 10 || s.value.size() > 10 + 126) return bad();
      match.serial = s.value.substr(10);
    }
    out = match;
    return {};
  };
}

// "1-2.4": a bus, then the ports from its root hub on; the kernel allows six hubs in a row.
bool is_port(const std::string& text) {
  static constexpr std::size_t kLevelsMax = 7;
  std::size_t levels = 0;
  std::uint32_t number = 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  for (char before = '-';; ++levels) {
    const auto parsed = std::from_chars(at, end, number);
    if (parsed.ec != std::errc() || *at == '0' || number > 255) return false;
    if (parsed.ptr == end) return levels >= 1 && levels <= kLevelsMax;
    if (*parsed.ptr != before) return false;
    before = '.';
    at = parsed.ptr + 1;
  }
}

Setter port(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (!is_port(s.value)) {
      return s.place.bad("write the port as sysfs names what is plugged in there, for example 1-2.4: bus 1, port 2, " +
                         std::string("and port 4 of the hub there"));
    }
    out = s.value;
    return {};
  };
}

Setter endpoint(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    const auto bad = [&] { return s.place.bad("write unix:/absolute/path or tcp:HOST:PORT"); };
    if (s.value.rfind("unix:/", 0) == 0) {
      if (s.value.size() - 5 > 107) return s.place.bad("the path of a Unix socket has at most 107 bytes");
      out = s.value;
      return {};
    }
    const auto colon = s.value.rfind(':');
    if (s.value.rfind("tcp:", 0) != 0 || colon <= 4 || s.value.size() > 300) return bad();
    std::uint32_t port = 0;
    const char* const end = s.value.data() + s.value.size();
    const auto parsed = std::from_chars(s.value.data() + colon + 1, end, port);
    if (parsed.ec != std::errc() || parsed.ptr != end || port == 0 || port > 65535) return bad();
    out = s.value;
    return {};
  };
}

// "HOST:PORT", HOST being a name, an address, or an IPv6 address in brackets.
bool is_host_port(const std::string& text, bool host_needed) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos || text.size() > 300 || (host_needed && colon == 0)) return false;
  const bool bracketed = colon > 1 && text[0] == '[' && text[colon - 1] == ']';
  if (!bracketed && text.find(':') != colon) return false;
  std::uint32_t port = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + colon + 1, end, port);
  return parsed.ec == std::errc() && parsed.ptr == end && port > 0 && port <= 65535;
}

Setter listen_address(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (!is_host_port(s.value, false)) return s.place.bad("write ADDRESS:PORT, [IPV6]:PORT or :PORT");
    out = s.value;
    return {};
  };
}

// `scheme`: what every entry begins with.
Setter address_list(std::vector<std::string>& out, const std::string& scheme) {
  return [&out, scheme](const Setting& s) -> Result<void> {
    std::istringstream parts(s.value);
    std::string part;
    out.clear();
    while (std::getline(parts, part, ',')) {
      part = trimmed(part);
      if (part.rfind(scheme, 0) != 0 || !is_host_port(part.substr(scheme.size()), true))
        return s.place.bad("write " + scheme + "HOST:PORT, with commas between several");
      out.push_back(part);
    }
    if (out.empty() || out.size() > 8) return s.place.bad("1 to 8 addresses are allowed");
    return {};
  };
}

Setter store_prefix(std::string& out) {
  return [&out](const Setting& s) -> Result<void> {
    if (s.value.size() < 2 || s.value.size() > 128 || s.value.front() != '/' || s.value.back() != '/')
      return s.place.bad("2 to 128 characters are needed, the first and the last of them /");
    out = s.value;
    return {};
  };
}

Setter guest_list(std::vector<std::string>& out) {
  return [&out](const Setting& s) -> Result<void> {
    std::istringstream parts(s.value);
    std::string part;
    while (std::getline(parts, part, ';')) {
      if (part.empty() || part.size() > 255) return s.place.bad("write guest names or UUIDs with ; between them");
      if (const auto uuid = parse_uuid(part)) part = *uuid;
      out.push_back(part);
    }
    if (out.empty() || out.size() > 256) return s.place.bad("1 to 256 guests are allowed");
    return {};
  };
}

Setter duration(std::uint64_t& out) {
  return [&out](const Setting& s) -> Result<void> {
    const auto seconds = parse_duration_s(s.value);
    if (!seconds) return s.place.bad(seconds.error().message);
    out = *seconds;
    return {};
  };
}

Setter boundary_ms(std::uint32_t& out, std::uint64_t most_s) {
  return [&out, most_s](const Setting& s) -> Result<void> {
    const auto seconds = parse_duration_s(s.value);
    if (!seconds || *seconds == 0 || *seconds > most_s) {
      return s.place.bad("a duration from 1s to " + format_duration(most_s) + " is needed");
    }
    out = static_cast<std::uint32_t>(*seconds * 1000);
    return {};
  };
}

std::vector<std::pair<std::string, Rung>> rung_choices() {
  std::vector<std::pair<std::string, Rung>> out;
  for (std::size_t i = 0; i < kRungNames.size(); ++i) out.emplace_back(kRungNames[i], static_cast<Rung>(i));
  return out;
}

using Setters = std::map<std::string, Setter>;

std::map<std::string, Setters> fixed_groups(Config& c, std::string& profile) {
  using L = log::Level;
  return {
      {"daemon",
       {{"host_id", identifier(c.host_id)},
        {"state_dir", absolute_path(c.state_dir)},
        {"run_dir", absolute_path(c.run_dir)},
        {"log_level",
         one_of<L>(c.log_level,
                   {{"debug", L::kDebug}, {"info", L::kInfo}, {"warning", L::kWarning}, {"error", L::kError}})},
        {"libvirt_uri", any_text(c.libvirt_uri)},
        {"libvirt_run_dir", absolute_path(c.libvirt_run_dir)},
        {"relay_path", absolute_path(c.relay_path)},
        {"relay_user", any_text(c.relay_user)}}},
      {"cluster", {{"listen", listen_address(c.cluster_listen)}, {"advertise", address_list(c.cluster_advertise, "")}}},
      {"store",
       {{"endpoints", address_list(c.store.endpoints, "https://")},
        {"ca_file", absolute_path(c.store.ca_file)},
        {"cert_file", absolute_path(c.store.cert_file)},
        {"key_file", absolute_path(c.store.key_file)},
        {"prefix", store_prefix(c.store.prefix)}}},
      {"access",
       {{"act_group", any_text(c.act_group)},
        {"read", one_of<ReadAccess>(c.read, {{"nobody", ReadAccess::kNobody}, {"everyone", ReadAccess::kEveryone}})}}},
      {"timing",
       {{"profile", one_of<std::string>(profile, {{"default", "default"}, {"fast", "fast"}})},
        {"ttl_ms", number_between<std::uint32_t>(c.ttl_ms, 500, 600'000)},
        {"renewal_ms", number_between<std::uint32_t>(c.renewal_ms, 50, 120'000)},
        {"grace_ms", number_between<std::uint32_t>(c.grace_ms, 300, 60'000)},
        {"drift_ppm", number_between<std::uint32_t>(c.drift_ppm, 1, 50'000)}}},
      {"hook", {{"deadline_ms", number_between<std::uint32_t>(c.hook_deadline_ms, 1'000, 600'000)}}},
  };
}

Setters device_setters(DeviceConfig& d) {
  return {{"endpoint", endpoint(d.endpoint)},
          {"usb", usb_match(d.usb)},
          {"port", port(d.port)},
          {"guests", guest_list(d.guests)},
          {"until_max", duration(d.until_max_s)},
          {"isolation", boundary_ms(d.isolation_ms, 3600)},
          {"min_rung", one_of<Rung>(d.min_rung, rung_choices())},
          {"reset", one_of<bool>(d.reset, {{"yes", true}, {"no", false}})}};
}

std::string names_of(const Setters& setters) {
  std::string names;
  for (const auto& [name, setter] : setters) names += (names.empty() ? "" : ", ") + name;
  return names;
}

Result<void> set_one(const Setters& setters, const Setting& setting) {
  const auto setter = setters.find(setting.place.key);
  if (setter == setters.end()) return setting.place.bad("no such key; allowed here are: " + names_of(setters));
  return setter->second(setting);
}

std::string identity_of(const DeviceConfig& device) {
  if (!device.usb) return device.endpoint;
  return "usb " + std::to_string(device.usb->vendor) + ":" + std::to_string(device.usb->product) + ":" +
         device.usb->serial + " at " + device.port;
}

// Whether one thing that is plugged in could match both.
bool may_be_one(const DeviceConfig& a, const DeviceConfig& b) {
  if (!a.usb || !b.usb || a.usb->vendor != b.usb->vendor || a.usb->product != b.usb->product) return false;
  const bool serials_differ = !a.usb->serial.empty() && !b.usb->serial.empty() && a.usb->serial != b.usb->serial;
  const bool ports_differ = !a.port.empty() && !b.port.empty() && a.port != b.port;
  return !serials_differ && !ports_differ;
}

// What one key alone cannot tell.
Result<void> check_devices(const Config& config, const std::map<std::string, Place>& places) {
  std::map<std::string, std::string> owners;
  for (const auto& device : config.devices) {
    const Place& place = places.at(device.name);
    if (device.endpoint.empty() == !device.usb.has_value())
      return place.bad("exactly one of endpoint= and usb= is needed");
    if (!device.port.empty() && !device.usb) return place.bad("port= goes with usb=");
    const auto [other, fresh] = owners.emplace(identity_of(device), device.name);
    if (!fresh) {
      return place.bad("device " + other->second + " has the same " +
                       (device.usb ? "usb= match and port" : "endpoint=") + "; one physical device has one name");
    }
    for (const auto& twin : config.devices) {
      if (&twin == &device) break;
      if (may_be_one(device, twin)) {
        return place.bad("one physical device could be this and device " + twin.name +
                         "; write the serial of both in usb=, or give both a port=");
      }
    }
    if (device.endpoint.rfind("tcp:", 0) == 0 && device.isolation_ms > config.ttl_ms) {
      return place.bad("isolation= of a network endpoint can be at most ttl_ms, because another host could reach it");
    }
  }
  return {};
}

Result<void> check_whole(const Config& config, const std::vector<Setting>& settings, const std::string& path) {
  std::size_t name_room = kLeastNameRoom;
  for (const DeviceConfig& device : config.devices) name_room = std::max(name_room, device.name.size());
  if (config.run_dir.size() + name_room > kRunDirAndNameMax) {
    return place_of(settings, path, "daemon", "run_dir")
        .bad("at most " + std::to_string(kRunDirAndNameMax - name_room) +
             " characters with these device names, because guest sockets lie under it");
  }
  if (config.renewal_ms * 3 > config.ttl_ms) {
    return place_of(settings, path, "timing", "ttl_ms")
        .bad("at least 3 × renewal_ms is needed (here 3 × " + std::to_string(config.renewal_ms) + " > " +
             std::to_string(config.ttl_ms) + "), so that two lost renewals cost nothing");
  }
  const StoreConfig& store = config.store;
  if (!store.endpoints.empty() && (store.ca_file.empty() || store.cert_file.empty() || store.key_file.empty())) {
    return place_of(settings, path, "store", "endpoints")
        .bad("ca_file=, cert_file= and key_file= are needed too: the store is spoken to over mutual TLS only");
  }
  return {};
}

}  // namespace

const char* rung_name(Rung rung) { return kRungNames.at(static_cast<std::size_t>(rung)); }

Result<Config> parse_config(const std::string& text, const std::string& path) {
  if (text.size() > kConfigBytesMax) return fail(ErrorCode::kBadInput, path + ": larger than 1 MiB");
  const auto settings = read_settings(text, path);
  if (!settings) return tl::unexpected(settings.error());

  Config config;
  config.host_id = "localhost";
  if (const char* name = g_get_host_name(); is_identifier(name)) config.host_id = name;
  config.relay_path = std::string(USBLEASE_LIBEXECDIR) + "/usblease-relay";
  std::string profile;
  const auto groups = fixed_groups(config, profile);
  std::map<std::string, Place> device_places;
  // The profile first, so that single keys override it wherever they stand.
  for (const Setting& s : *settings) {
    if (s.place.group == "timing" && s.place.key == "profile" && s.value == "fast") {
      config.ttl_ms = 1'000;
      config.renewal_ms = 200;
      config.grace_ms = 300;
    }
  }
  for (const Setting& s : *settings) {
    const std::string& group = s.place.group;
    if (group.rfind("device ", 0) == 0) {
      const std::string name = group.substr(7);
      if (s.place.key.empty()) {
        if (!is_device_name(name))
          return s.place.bad("a device name is 1 to 48 of a-z 0-9 _ -, beginning with a letter or digit");
        if (config.devices.size() >= kDevicesMax) return s.place.bad("at most 1024 devices");
        config.devices.push_back({});
        config.devices.back().name = name;
        device_places[name] = s.place;
      } else if (const auto set = set_one(device_setters(config.devices.back()), s); !set) {
        return tl::unexpected(set.error());
      }
      continue;
    }
    const auto known = groups.find(group);
    if (known == groups.end())
      return s.place.bad("no such group; allowed are: daemon, cluster, store, access, timing, hook, device NAME");
    if (s.place.key.empty()) continue;
    if (const auto set = set_one(known->second, s); !set) return tl::unexpected(set.error());
  }
  if (const auto whole = check_whole(config, *settings, path); !whole) return tl::unexpected(whole.error());
  if (const auto devices = check_devices(config, device_places); !devices) return tl::unexpected(devices.error());
  return config;
}

Result<Config> load_config(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT && path == kDefaultConfigPath) return parse_config("", path);
    const auto code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kInternal;
    return fail(code, "cannot open " + path + ": " + g_strerror(errno));
  }
  std::string text;
  std::array<char, 16'384> chunk{};
  while (text.size() <= kConfigBytesMax) {  // parse_config refuses what is larger
    const ssize_t count = read(fd.get(), chunk.data(), chunk.size());
    if (count == 0) break;
    if (count > 0) {
      text.append(chunk.data(), static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      return fail_errno("cannot read " + path, errno);
    }
  }
  return parse_config(text, path);
}

std::string guest_socket_path(const std::string& run_dir, const std::string& guest_uuid, const std::string& device) {
  return run_dir + "/guests/" + guest_uuid + "/" + device;
}

std::optional<GuestSocketName> parse_guest_socket_path(const std::string& run_dir, const std::string& path, bool* bad) {
  *bad = false;
  const std::string root = run_dir + "/guests/";
  if (path.rfind(root, 0) != 0) return std::nullopt;
  const std::string rest = path.substr(root.size());
  const auto slash = rest.find('/');
  const auto uuid = parse_uuid(rest.substr(0, slash));
  if (slash == std::string::npos || !uuid || !is_device_name(rest.substr(slash + 1))) {
    *bad = true;
    return std::nullopt;
  }
  return GuestSocketName{*uuid, rest.substr(slash + 1)};
}

}  // namespace usblease
