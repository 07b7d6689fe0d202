#include "plugin/libvirt/declarations.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <optional>
#include <set>

#include "common/assignments.h"
#include "common/glib_ptr.h"
#include "common/managed.h"
#include "common/text.h"

namespace usblease::hook {
namespace {

using usb::Managed;
using usb::UsbDevice;
using usb::UsbSelector;

using Status = Result<void>;

// libvirt writes 0x1d6b, 0x0001 or 12.
std::optional<std::uint32_t> parse_number(std::string_view text) {
  int base = 10;
  if (text.substr(0, 2) == "0x") {
    text.remove_prefix(2);
    base = 16;
  }
  std::uint32_t number = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string in_quotes(std::string_view untrusted) { return "'" + escape_text(untrusted.substr(0, 256)) + "'"; }

class Finder {
 public:
  Finder(const Domain& domain, const LoadConfig& load_config, const Sysfs& sysfs)
      : domain_(domain), load_config_(load_config), sysfs_(sysfs) {}

  Result<std::vector<Declared>> run() {
    if (auto done = read_metadata(); !done) return tl::unexpected(done.error());
    for (const char* kind : {"redirdev", "hostdev"}) {
      for (const Element& element : domain_.devices) {
        if (element.name != kind) continue;
        const auto done = element.name == "redirdev" ? read_redirdev(element) : read_hostdev(element);
        if (!done) return tl::unexpected(done.error());
      }
    }
    for (const Element& element : domain_.devices) {
      if (auto done = check_others(element); !done) return tl::unexpected(done.error());
    }
    if (declared_.size() > kDeclaredMax) {
      return fail(ErrorCode::kBadInput, "it declares more than " + std::to_string(kDeclaredMax) + " devices");
    }
    return std::move(declared_);
  }

 private:
  Status need_config() {
    if (config_ != nullptr) return {};
    auto loaded = load_config_();
    if (!loaded) {
      return fail(ErrorCode::kBadInput,
                  "it names USB devices, and the configuration that says which are managed cannot be read: " +
                      loaded.error().message + "; correct it and start the guest again");
    }
    config_ = *loaded;
    return {};
  }

  Status declare(const std::string& device, Way way) {
    for (Declared& earlier : declared_) {
      if (earlier.device != device) continue;
      if (earlier.way != Way::kMetadata) {
        return fail(ErrorCode::kBadInput,
                    "it declares device " + device + " with two elements of <devices>; keep one of them");
      }
      // The element needs the device at the start, whatever required= says; the metadata may still say how long to
      // wait.
      earlier.way = way;
      earlier.required = true;
      return {};
    }
    declared_.push_back({device, way, true, 0});
    return {};
  }

  Status read_metadata() {
    if (domain_.metadata.empty()) return {};
    if (domain_.metadata.size() > 1) {
      return fail(ErrorCode::kBadInput,
                  std::string("usblease metadata: more than one element of ") + kMetadataNamespace + "; keep one");
    }
    const auto assignments = parse_assignments(serialize(domain_.metadata.front()));
    if (!assignments) return tl::unexpected(assignments.error());
    for (const auto& a : *assignments) declared_.push_back({a.device, Way::kMetadata, a.required, a.wait_s});
    return assignments->empty() ? Status{} : need_config();
  }

  Status read_redirdev(const Element& element) {
    const Element* source = element.child("source");
    const std::string& type = element.attribute("type");
    if (source == nullptr || (type != "unix" && type != "tcp")) return {};
    if (auto ready = need_config(); !ready) return ready;
    if (auto direct = refuse_endpoint(type, *source); !direct) return direct;
    if (type != "unix") return {};
    const std::string& path = source->attribute("path");
    bool bad = false;
    const auto socket = parse_guest_socket_path(config_->run_dir, normal_path(path), &bad);
    if (bad) {
      return fail(ErrorCode::kBadInput, "the <redirdev> path " + in_quotes(path) +
                                            " is not a guest socket; it must be " +
                                            guest_socket_path(config_->run_dir, uuid_or_word(), "DEVICE"));
    }
    if (!socket) return {};
    if (socket->guest_uuid != domain_.uuid) {
      return fail(ErrorCode::kRefused, "the <redirdev> path " + in_quotes(path) +
                                           " is the socket of another guest; the one of this guest is " +
                                           guest_socket_path(config_->run_dir, uuid_or_word(), socket->device));
    }
    if (source->attribute("mode") != "connect") {
      return fail(ErrorCode::kBadInput,
                  "the <redirdev> on " + in_quotes(path) + " needs <source mode='connect'>: usbleased listens there");
    }
    return declare(socket->device, Way::kRedirdev);
  }

  // A redirdev that goes past us to what the configuration names as a device's endpoint.
  Status refuse_endpoint(const std::string& type, const Element& source) {
    for (const auto& device : config_->devices) {
      const bool same = type == "unix"
                            ? device.endpoint.rfind("unix:", 0) == 0 &&
                                  normal_path(device.endpoint.substr(5)) == normal_path(source.attribute("path"))
                            : device.endpoint == "tcp:" + source.attribute("host") + ":" + source.attribute("service");
      if (!same) continue;
      return fail(ErrorCode::kRefused, "its <redirdev> names the endpoint of the managed device " + device.name +
                                           " itself; declare the device instead: path='" +
                                           guest_socket_path(config_->run_dir, uuid_or_word(), device.name) + "'");
    }
    return {};
  }

  Status read_hostdev(const Element& element) {
    if (element.attribute("mode") != "subsystem") return {};
    const Element* source = element.child("source");
    const std::string& type = element.attribute("type");
    if (type == "usb") return source != nullptr ? read_usb(*source) : Status{};
    if (type == "pci" && source != nullptr) return check_pci(*source);
    if (type == "scsi" && source != nullptr) return check_scsi(*source);
    return {};
  }

  Status read_usb(const Element& source) {
    if (auto ready = need_config(); !ready) return ready;
    const Managed managed(*config_);
    if (!managed.any_usb()) return {};
    UsbSelector selector;
    if (const Element* vendor = source.child("vendor")) selector.vendor = parse_number(vendor->attribute("id"));
    if (const Element* product = source.child("product")) selector.product = parse_number(product->attribute("id"));
    if (const Element* address = source.child("address")) {
      selector.bus = parse_number(address->attribute("bus"));
      selector.device = parse_number(address->attribute("device"));
      selector.port = address->attribute("port");
    }
    const auto device = managed.find(selector, sysfs_.usb_devices());
    if (!device) return tl::unexpected(device.error());
    return device->empty() ? Status{} : declare(*device, Way::kHostdev);
  }

  Status check_pci(const Element& source) {
    const Element* address = source.child("address");
    if (address == nullptr) return {};
    const auto domain = parse_number(address->attribute("domain")).value_or(0);
    const auto bus = parse_number(address->attribute("bus"));
    const auto slot = parse_number(address->attribute("slot"));
    const auto function = parse_number(address->attribute("function"));
    if (!bus || !slot || !function) return {};  // libvirt refuses it
    std::array<char, 48> name{};
    std::snprintf(name.data(), name.size(), "%04x:%02x:%02x.%x", domain, *bus, *slot, *function);
    return refuse_managed(sysfs_.usb_below_pci(name.data()),
                          std::string("the PCI device ") + name.data() + " is the controller of");
  }

  // <source><adapter name='scsi_host2'/>…: a LUN of a USB disk.
  Status check_scsi(const Element& source) {
    const Element* adapter = source.child("adapter");
    if (adapter == nullptr) return {};
    constexpr std::string_view kPrefix = "scsi_host";
    const std::string& name = adapter->attribute("name");
    const auto number = name.rfind(kPrefix, 0) == 0 ? parse_number(name.substr(kPrefix.size())) : std::nullopt;
    if (!number) return {};
    return refuse_managed(sysfs_.usb_above_scsi_host(*number), "the SCSI host " + in_quotes(name) + " belongs to");
  }

  // Everything else that can name a host's device: nodes by path, network interfaces.
  Status check_others(const Element& element) {
    if (element.name == "interface" && element.attribute("type") == "direct") {
      if (const Element* source = element.child("source")) {
        const std::string& name = source->attribute("dev");
        if (auto free = refuse_managed(sysfs_.usb_above_interface(name),
                                       "the network interface " + in_quotes(name) + " belongs to");
            !free) {
          return free;
        }
      }
    }
    return check_paths(element, element.attribute("type"));
  }

  // `type`: of the element above, which says what the path in a <source> is.
  Status check_paths(const Element& element, const std::string& type) {
    for (const Attribute& a : element.attributes) {
      const bool is_node =
          element.name == "source" && ((type == "block" && a.name == "dev") || (type == "dev" && a.name == "path"));
      if (auto free = check_path(a.value, is_node); !free) return free;
    }
    if (auto free = check_path(element.text, false); !free) return free;
    for (const Element& child : element.children) {
      const std::string& own_type = element.attribute("type");
      if (auto free = check_paths(child, own_type.empty() ? type : own_type); !free) return free;
    }
    return {};
  }

  // Only what is a node by its place or its type is looked at: stat(2) of an image on a dead network file system would
  // hang, and a guest that has nothing to do with us must not wait.
  Status check_path(const std::string& value, bool is_node) {
    if (value.empty() || value[0] != '/') return {};
    const std::string path = normal_path(value);
    if (!is_node && path.rfind("/dev/", 0) != 0) return {};
    if (!nodes_.insert(path).second) return {};
    if (nodes_.size() > kNodesMax) {
      return fail(ErrorCode::kBadInput, "it names more than " + std::to_string(kNodesMax) + " host device nodes");
    }
    return refuse_managed(sysfs_.usb_above_node(path), in_quotes(value) + " is a node of");
  }

  Status refuse_managed(const std::vector<UsbDevice>& usb, const std::string& what) {
    if (usb.empty()) return {};
    if (auto ready = need_config(); !ready) return ready;
    const Managed managed(*config_);
    for (const auto& device : usb) {
      const std::string name = managed.name_of(device);
      if (name.empty()) continue;
      std::string message = what;
      message.append(" the managed device ").append(name);
      message.append(
          ", which guests get whole and leased only; remove it from the XML and type `usblease assign GUEST ");
      message.append(name).append("`");
      return fail(ErrorCode::kRefused, std::move(message));
    }
    return {};
  }

  static std::string normal_path(const std::string& path) {
    const GChars canonical(g_canonicalize_filename(path.c_str(), "/"));
    std::string normal = canonical.get();
    if (normal.rfind("//", 0) == 0) normal.erase(0, 1);
    return normal;
  }

  [[nodiscard]] std::string uuid_or_word() const { return domain_.uuid.empty() ? "UUID" : domain_.uuid; }

  const Domain& domain_;
  const LoadConfig& load_config_;
  const Sysfs& sysfs_;
  const Config* config_ = nullptr;
  std::vector<Declared> declared_;
  std::set<std::string> nodes_;
};

}  // namespace

Result<std::vector<Declared>> find_declarations(const Domain& domain, const LoadConfig& load_config,
                                                const Sysfs& sysfs) {
  return Finder(domain, load_config, sysfs).run();
}

}  // namespace usblease::hook
