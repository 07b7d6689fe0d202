#include "common/assignments.h"

#include <libxml/parser.h>
#include <libxml/tree.h>

#include <charconv>
#include <cstring>
#include <memory>
#include <set>

#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease {
namespace {

constexpr std::size_t kElementBytesMax = 64 * 1024;

std::string to_string(const xmlChar* text) { return text != nullptr ? reinterpret_cast<const char*>(text) : ""; }

tl::unexpected<Error> bad(const xmlNode* node, const std::string& why) {
  return fail(ErrorCode::kBadInput, "usblease metadata, line " + std::to_string(xmlGetLineNo(node)) + ": " + why);
}

const xmlNode* first_element(const xmlNode* parent) {
  const xmlNode* node = parent->children;
  while (node != nullptr && node->type != XML_ELEMENT_NODE) node = node->next;
  return node;
}

bool is_ours(const xmlNode* node, const char* name) {
  // libvirt's API wants the element without our prefix and adds the namespace itself, hence no namespace is ours too.
  const bool our_namespace = node->ns == nullptr || to_string(node->ns->href) == kMetadataNamespace;
  return node->type == XML_ELEMENT_NODE && our_namespace && to_string(node->name) == name;
}

Result<void> set_attribute(Assignment& assignment, const xmlNode* node, const std::string& name,
                           const std::string& value) {
  if (name == "name") {
    if (!is_device_name(value)) return bad(node, "name=\"" + escape_text(value) + "\" is not a device name");
    assignment.device = value;
  } else if (name == "required") {
    if (value != "yes" && value != "no") return bad(node, "required= must be yes or no");
    assignment.required = value == "yes";
  } else if (name == "wait") {
    const char* const end = value.data() + value.size();
    const auto parsed = std::from_chars(value.data(), end, assignment.wait_s);
    if (parsed.ec != std::errc() || parsed.ptr != end || assignment.wait_s > kAssignmentWaitMaxS) {
      return bad(node, "wait= must be 0 to " + std::to_string(kAssignmentWaitMaxS) + " seconds");
    }
  } else {
    return bad(node, "unknown attribute " + escape_text(name) + "; allowed are name, required, wait");
  }
  return {};
}

Result<Assignment> parse_device(const xmlNode* node) {
  Assignment assignment;
  if (const xmlNode* child = first_element(node)) {
    return bad(child, "unknown element <" + escape_text(to_string(child->name)) + "> inside <device>");
  }
  for (const xmlAttr* attribute = node->properties; attribute != nullptr; attribute = attribute->next) {
    const GPtr<xmlChar, [](xmlChar* text) { xmlFree(text); }> value(
        xmlNodeListGetString(node->doc, attribute->children, 1));
    if (const auto set = set_attribute(assignment, node, to_string(attribute->name), to_string(value.get())); !set) {
      return tl::unexpected(set.error());
    }
  }
  if (assignment.device.empty()) return bad(node, "a device needs name=");
  return assignment;
}

}  // namespace

Result<std::vector<Assignment>> parse_assignments(const std::string& xml) {
  if (xml.size() > kElementBytesMax) return fail(ErrorCode::kBadInput, "usblease metadata: larger than 64 KiB");
  const GPtr<xmlDoc, xmlFreeDoc> document(xmlReadMemory(xml.data(), static_cast<int>(xml.size()), "metadata", nullptr,
                                                        XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  const xmlNode* root = document != nullptr ? xmlDocGetRootElement(document.get()) : nullptr;
  if (root == nullptr) return fail(ErrorCode::kBadInput, "usblease metadata: not well-formed XML");
  // Entities could grow without bound when an attribute is read; libvirt never hands out a document type.
  if (xmlGetIntSubset(document.get()) != nullptr) {
    return fail(ErrorCode::kBadInput, "usblease metadata: a document type is not allowed");
  }
  if (!is_ours(root, "devices"))
    return bad(root, "the element must be <devices> of " + std::string(kMetadataNamespace));
  if (root->properties != nullptr) {
    return bad(root, "unknown attribute " + escape_text(to_string(root->properties->name)) + " of <devices>");
  }
  std::vector<Assignment> assignments;
  std::set<std::string> names;
  for (const xmlNode* node = root->children; node != nullptr; node = node->next) {
    if (node->type != XML_ELEMENT_NODE) continue;
    if (!is_ours(node, "device")) return bad(node, "unknown element <" + escape_text(to_string(node->name)) + ">");
    auto assignment = parse_device(node);
    if (!assignment) return tl::unexpected(assignment.error());
    if (!names.insert(assignment->device).second) return bad(node, "device " + assignment->device + " is named twice");
    if (assignments.size() == kAssignmentsMax) return bad(node, "at most 16 devices a guest");
    assignments.push_back(std::move(*assignment));
  }
  return assignments;
}

std::string format_assignments(const std::vector<Assignment>& assignments) {
  std::string out = "<devices>";
  for (const auto& a : assignments) {
    out += "<device name='" + a.device + "' required='" + (a.required ? "yes" : "no") + "' wait='" +
           std::to_string(a.wait_s) + "'/>";
  }
  return out + "</devices>";
}

}  // namespace usblease
