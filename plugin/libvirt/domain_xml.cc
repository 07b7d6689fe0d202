#include "plugin/libvirt/domain_xml.h"

#include <libxml/parser.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "common/assignments.h"
#include "common/glib_ptr.h"
#include "common/text.h"

namespace usblease::hook {
namespace {

constexpr std::size_t kTextBytesMax = 4096;  // of one element; a path is shorter

std::string to_string(const xmlChar* text) { return text != nullptr ? reinterpret_cast<const char*>(text) : ""; }

// What the callbacks of one parse share.
class Builder {
 public:
  explicit Builder(xmlParserCtxt* parser) : parser_(parser) {}

  void start(Element element) {
    ++depth_;
    if (depth_ == 1) {
      if (element.name != "domain")
        return stop("the root element is <" + escape_text(element.name) + ">, not <domain>");
      read_id(element.attribute("id"));
    } else if (depth_ == 2) {
      section_ = element.namespace_uri.empty() ? element.name : "";
      section_has_text_ = section_ == "uuid";
    } else if (!open_.empty() || (depth_ == 3 && is_kept(element))) {
      if (++elements_ > kElementsMax) return stop("more than " + std::to_string(kElementsMax) + " elements");
      open_.push_back(std::move(element));
    }
  }

  void end() {
    --depth_;
    if (!open_.empty()) {
      Element done = std::move(open_.back());
      open_.pop_back();
      auto& parent = !open_.empty()          ? open_.back().children
                     : section_ == "devices" ? domain_.devices
                                             : domain_.metadata;
      parent.push_back(std::move(done));
    } else if (depth_ == 1 && section_has_text_) {
      if (auto uuid = parse_uuid(uuid_text_)) domain_.uuid = std::move(*uuid);
      section_has_text_ = false;
    }
  }

  void text(std::string_view text) {
    std::string* out = !open_.empty() ? &open_.back().text : depth_ == 2 && section_has_text_ ? &uuid_text_ : nullptr;
    if (out == nullptr || out->size() >= kTextBytesMax) return;
    out->append(text.substr(0, kTextBytesMax - out->size()));
  }

  void stop(std::string why) {
    if (why_.empty()) why_ = std::move(why);
    xmlStopParser(parser_);
  }

  void note_error(int line, const char* message) {
    if (!why_.empty()) return;
    std::string text = message != nullptr ? message : "not well-formed";
    while (!text.empty() && text.back() == '\n') text.pop_back();
    why_ = "line " + std::to_string(line) + ": " + escape_text(std::string_view(text).substr(0, 200));
  }

  [[nodiscard]] const std::string& why() const { return why_; }
  Domain take() { return std::move(domain_); }

 private:
  [[nodiscard]] bool is_kept(const Element& element) const {
    if (section_ == "devices") return element.namespace_uri.empty();
    return section_ == "metadata" && element.namespace_uri == kMetadataNamespace;
  }

  void read_id(const std::string& text) {
    int id = -1;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), id);
    if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size()) domain_.id = id;
  }

  xmlParserCtxt* parser_;
  Domain domain_;
  std::vector<Element> open_;
  std::size_t depth_ = 0;
  std::size_t elements_ = 0;
  std::string section_;
  bool section_has_text_ = false;
  std::string uuid_text_;
  std::string why_;
};

// libxml2 gives the parser's _private to nobody else, and the parser itself as the callbacks' context.
Builder& builder_of(void* context) { return *static_cast<Builder*>(static_cast<xmlParserCtxt*>(context)->_private); }

void on_start(void* context, const xmlChar* name, const xmlChar* /*prefix*/, const xmlChar* uri, int /*namespaces*/,
              const xmlChar** /*namespace_list*/, int attributes, int /*defaulted*/, const xmlChar** list) noexcept {
  Element element;
  element.name = to_string(name);
  element.namespace_uri = to_string(uri);
  element.attributes.reserve(static_cast<std::size_t>(attributes));
  for (int i = 0; i < attributes; ++i, list += 5) {  // name, prefix, URI, begin and end of the value
    element.attributes.push_back(
        {to_string(list[0]), to_string(list[2]),
         std::string(reinterpret_cast<const char*>(list[3]), reinterpret_cast<const char*>(list[4]))});
  }
  builder_of(context).start(std::move(element));
}

void on_end(void* context, const xmlChar* /*name*/, const xmlChar* /*prefix*/, const xmlChar* /*uri*/) noexcept {
  builder_of(context).end();
}

void on_text(void* context, const xmlChar* text, int length) noexcept {
  builder_of(context).text({reinterpret_cast<const char*>(text), static_cast<std::size_t>(length)});
}

// Called before the first declaration inside is read, so no entity is ever defined and nothing is fetched.
void on_document_type(void* context, const xmlChar* /*name*/, const xmlChar* /*id*/, const xmlChar* /*uri*/) noexcept {
  builder_of(context).stop("it has a document type (<!DOCTYPE …>), which libvirt never writes");
}

void on_error(void* context, xmlError* error) noexcept {
  if (error->level >= XML_ERR_ERROR) builder_of(context).note_error(error->line, error->message);
}

void append_escaped(std::string& out, std::string_view text) {
  for (const char c : text) {
    if (std::strchr("<>&'\"\n\r\t", c) != nullptr && c != '\0') {
      out += "&#" + std::to_string(static_cast<int>(c)) + ";";
    } else {
      out += c;
    }
  }
}

void append_element(std::string& out, const Element& element) {
  out += "<" + element.name + " xmlns='";
  append_escaped(out, element.namespace_uri);
  out += "'";
  std::size_t foreign = 0;
  for (const auto& a : element.attributes) {
    // A name that no reader of ours knows, so that an attribute of another namespace is not taken for ours.
    const std::string name = a.namespace_uri.empty() ? a.name : "foreign-" + std::to_string(++foreign) + "-" + a.name;
    out += " " + name + "='";
    append_escaped(out, a.value);
    out += "'";
  }
  out += ">";
  append_escaped(out, element.text);
  for (const auto& child : element.children) append_element(out, child);
  out += "</" + element.name + ">";
}

}  // namespace

const std::string& Element::attribute(std::string_view wanted) const {
  static const std::string none;
  for (const auto& a : attributes) {
    if (a.namespace_uri.empty() && a.name == wanted) return a.value;
  }
  return none;
}

const Element* Element::child(std::string_view wanted) const {
  for (const auto& c : children) {
    if (c.namespace_uri.empty() && c.name == wanted) return &c;
  }
  return nullptr;
}

std::string serialize(const Element& element) {
  std::string out;
  append_element(out, element);
  return out;
}

Result<Domain> parse_domain(std::string_view xml) {
  if (xml.size() > kXmlBytesMax) return fail(ErrorCode::kBadInput, "the domain XML is larger than 16 MiB");
  const GPtr<xmlParserCtxt, xmlFreeParserCtxt> parser(xmlNewParserCtxt());
  if (parser == nullptr) return fail(ErrorCode::kInternal, "out of memory");
  Builder builder(parser.get());
  *parser->sax = {};
  parser->sax->initialized = XML_SAX2_MAGIC;
  parser->sax->startElementNs = on_start;
  parser->sax->endElementNs = on_end;
  parser->sax->characters = on_text;
  parser->sax->cdataBlock = on_text;
  parser->sax->internalSubset = on_document_type;
  parser->sax->serror = on_error;
  parser->_private = &builder;
  // NOENT: without it "&amp;" reaches a SAX handler as "&#38;". There are no other entities, see on_document_type.
  xmlDoc* const none = xmlCtxtReadMemory(parser.get(), xml.data(), static_cast<int>(xml.size()), "domain", nullptr,
                                         XML_PARSE_NONET | XML_PARSE_NOENT | XML_PARSE_NOWARNING);
  if (none != nullptr) xmlFreeDoc(none);
  if (parser->wellFormed == 0 || !builder.why().empty()) {
    return fail(ErrorCode::kBadInput,
                "the domain XML cannot be read: " + (builder.why().empty() ? "not well-formed" : builder.why()));
  }
  return builder.take();
}

}  // namespace usblease::hook
