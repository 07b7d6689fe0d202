#include "daemon/host/guest_xml.h"

#include <glib.h>
#include <libxml/parser.h>
#include <libxml/tree.h>

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

std::optional<std::string> device_of(const xmlNode* element) {
  if (element->type != XML_ELEMENT_NODE) return std::nullopt;
  const xmlNode* const alias = first_child(element, "alias");
  if (alias == nullptr) return std::nullopt;
  const XmlText name(xmlGetProp(alias, name_of("name")));
  if (name == nullptr) return std::nullopt;
  return device_of_alias(reinterpret_cast<const char*>(name.get()));
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
  if (domain_xml.size() > kDomainXmlBytesMax) return fail(ErrorCode::kBadInput, "domain XML: larger than 8 MiB");
  const GPtr<xmlDoc, xmlFreeDoc> document(xmlReadMemory(domain_xml.data(), static_cast<int>(domain_xml.size()),
                                                        "domain", nullptr,
                                                        XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  const xmlNode* const root = document != nullptr ? xmlDocGetRootElement(document.get()) : nullptr;
  if (root == nullptr || xmlGetIntSubset(document.get()) != nullptr) {
    return fail(ErrorCode::kBadInput, "domain XML: not well-formed");
  }
  if (xmlStrcmp(root->name, name_of("domain")) != 0) return fail(ErrorCode::kBadInput, "domain XML: no <domain>");
  std::vector<std::string> devices;
  const xmlNode* const list = first_child(root, "devices");
  for (const xmlNode* node = list != nullptr ? list->children : nullptr; node != nullptr; node = node->next) {
    if (auto device = device_of(node)) devices.push_back(std::move(*device));
  }
  return devices;
}

std::string redirdev_xml(const std::string& device, const std::string& socket_path) {
  const GChars xml(
      g_markup_printf_escaped("<redirdev bus='usb' type='unix'>"
                              "<source mode='connect' path='%s'/><alias name='%s'/></redirdev>",
                              socket_path.c_str(), device_alias(device).c_str()));
  return xml.get();
}

std::string hostdev_xml(const std::string& device, std::uint32_t bus, std::uint32_t number) {
  const GChars xml(
      g_markup_printf_escaped("<hostdev mode='subsystem' type='usb' managed='no'>"
                              "<source><address bus='%u' device='%u'/></source><alias name='%s'/></hostdev>",
                              bus, number, device_alias(device).c_str()));
  return xml.get();
}

}  // namespace usblease::host
