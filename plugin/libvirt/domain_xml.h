// The domain XML that libvirt gives to its hooks, cut down to what can name a device. Knows XML, no rules.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"
#include "plugin/libvirt/input.h"

namespace usblease::hook {

inline constexpr std::size_t kElementsMax = 65'536;

struct Attribute {
  std::string name;
  std::string namespace_uri;
  std::string value;
};

struct Element {
  std::string name;
  std::string namespace_uri;
  std::vector<Attribute> attributes;
  std::vector<Element> children;
  std::string text;  // of the element itself, not of its children

  // The value of an attribute without a namespace; "" when it is absent.
  [[nodiscard]] const std::string& attribute(std::string_view wanted) const;
  // The first child of that name without a namespace, or nullptr.
  [[nodiscard]] const Element* child(std::string_view wanted) const;
};

struct Domain {
  int id = -1;                    // -1: the XML has none (a guest that does not run)
  std::string uuid;               // canonical; empty when absent or malformed
  std::vector<Element> devices;   // the children of <devices>
  std::vector<Element> metadata;  // the children of <metadata> that are of our namespace
};

// At most kXmlBytesMax bytes, kElementsMax elements in what is kept, depth as libxml2 bounds it (256). No network, no
// files, no entities: a document type is refused before anything in it is read.
Result<Domain> parse_domain(std::string_view xml);

// The element as a document of its own, every namespace written out.
std::string serialize(const Element& element);

}  // namespace usblease::hook
