#include "daemon/host/guest_xml.h"

#include <glib.h>
#include <libxml/parser.h>
#include <libxml/tree.h>

#include <functional>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::host {
namespace {

constexpr std::string_view kAliasPrefix = "ua-usblease-";

using XmlText = GPtr<xmlChar, [](xmlChar* text) { xmlFree(text); }>;

const xmlChar* name_of(const char* name) { return reinterpret_cast<const xmlChar*>(name); }

const xmlNode* first_child(const xmlNode* parent, const char* name) {
  const xmlNode* node = parent->children;
  while (node != nullptr && (node->type != XML_ELEMENT_NODE || xmlStrcmp(node->name, name_of(name)) != 0)) {
    node = node->next;
  }
  return node;
}

// "" when it has none.
std::string attribute(const xmlNode* element, const char* name) {
  const XmlText text(xmlGetProp(element, name_of(name)));
  return text != nullptr ? reinterpret_cast<const char*>(text.get()) : "";
}

std::optional<std::string> device_of(const xmlNode* element) {
  const xmlNode* const alias = first_child(element, "alias");
  if (alias == nullptr) return std::nullopt;
  return device_of_alias(attribute(alias, "name"));
}

// Calls `look` for each element of <devices>. kBadInput: too large, or no domain.
Result<void> for_each_device(const std::string& domain_xml, const std::function<void(const xmlNode*)>& look) {
  if (domain_xml.size() > kDomainXmlBytesMax) return fail(ErrorCode::kBadInput, "domain XML: larger than 8 MiB");
  const GPtr<xmlDoc, xmlFreeDoc> document(xmlReadMemory(domain_xml.data(), static_cast<int>(domain_xml.size()),
                                                        "domain", nullptr,
                                                        XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  const xmlNode* const root = document != nullptr ? xmlDocGetRootElement(document.get()) : nullptr;
  if (root == nullptr || xmlGetIntSubset(document.get()) != nullptr) {
    return fail(ErrorCode::kBadInput, "domain XML: not well-formed");
  }
  if (xmlStrcmp(root->name, name_of("domain")) != 0) return fail(ErrorCode::kBadInput, "domain XML: no <domain>");
  const xmlNode* const list = first_child(root, "devices");
  for (const xmlNode* node = list != nullptr ? list->children : nullptr; node != nullptr; node = node->next) {
    if (node->type == XML_ELEMENT_NODE) look(node);
  }
  return {};
}

}  // namespace

std::string device_alias(const std::string& device) { return std::string(kAliasPrefix) + device; }

std::optional<std::string> device_of_alias(std::string_view alias) {
  if (alias.substr(0, kAliasPrefix.size()) != kAliasPrefix) return std::nullopt;
  const auto device = alias.substr(kAliasPrefix.size());
  if (!is_device_name(device)) return std::nullopt;
  return std::string(device);
}

Result<std::vector<std::string>> attached_devices(const std::string& domain_xml) {
  std::vector<std::string> devices;
  const auto walked = for_each_device(domain_xml, [&](const xmlNode* element) {
    if (auto device = device_of(element)) devices.push_back(std::move(*device));
  });
  if (!walked) return tl::unexpected(walked.error());
  return devices;
}

bool has_hostdev_at(const std::string& domain_xml, std::uint32_t bus, std::uint32_t number) {
  bool found = false;
  const auto walked = for_each_device(domain_xml, [&](const xmlNode* element) {
    if (xmlStrcmp(element->name, name_of("hostdev")) != 0) return;
    const xmlNode* const source = first_child(element, "source");
    const xmlNode* const address = source != nullptr ? first_child(source, "address") : nullptr;
    if (address == nullptr) return;
    found = found || (attribute(address, "bus") == std::to_string(bus) &&
                      attribute(address, "device") == std::to_string(number));
  });
  return found || !walked;
}

std::string redirdev_xml(const std::string& device, const std::string& socket_path) {
  const GChars xml(
      g_markup_printf_escaped("<redirdev bus='usb' type='unix'>"
                              "<source mode='connect' path='%s'/><alias name='%s'/></redirdev>",
                              socket_path.c_str(), device_alias(device).c_str()));
  return xml.get();
}

std::string hostdev_xml(const std::string& device, std::uint32_t bus, std::uint32_t number) {
  const std::string alias = device.empty() ? "" : "<alias name='" + device_alias(device) + "'/>";  // checked by callers
  return "<hostdev mode='subsystem' type='usb' managed='no'><source><address bus='" + std::to_string(bus) +
         "' device='" + std::to_string(number) + "'/></source>" + alias + "</hostdev>";
}

}  // namespace usblease::host
