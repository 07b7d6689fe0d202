#include "plugin/libvirt/quick_look.h"

#include <cstring>
#include <initializer_list>

namespace usblease::hook {
namespace {

// Why a literal search is enough. A text that begins with "<domain", after white space at most, has no byte order mark
// and no XML declaration: it is UTF-8 (XML 1.0, 4.3.3). Nothing stands before the root element: there is no document
// type, hence no entity but the five predefined ones, and none of these stands for a letter, digit or slash (4.6). So
// without a character reference, "&#", every name and value stands in the text as it is. The needles, with "/dev/",
// are parts of every name or value that a rule of declarations.cc looks for. A text that begins otherwise may declare
// anything. libvirt writes its XML so (virDomainDefFormat), but nothing here relies on that.
constexpr const char* kNeedles[] = {"usblease", "hostdev", "redirdev", "block", "'dev'", "\"dev\"", "direct", "&#"};

bool contains(const char* text, std::size_t size, const char* needle) {
  return memmem(text, size, needle, std::strlen(needle)) != nullptr;
}

bool has_plain_head(const char* text, std::size_t size) {
  constexpr char kHead[] = "<domain";
  while (size > 0 && std::strchr(" \t\r\n", *text) != nullptr && *text != '\0') {
    ++text;
    --size;
  }
  return size > sizeof kHead - 1 && std::memcmp(text, kHead, sizeof kHead - 1) == 0;
}

bool ends_value(char c) { return c == '\'' || c == '"' || c == '<'; }

// What follows "/dev/" in nearly every guest, and is never a USB device: the random numbers and the terminals of the
// kernel. Anything else after it, ".." included, is not harmless.
bool is_harmless(const char* rest, std::size_t size) {
  for (const char* name : {"urandom", "random", "pts/"}) {
    std::size_t length = std::strlen(name);
    if (size <= length || std::memcmp(rest, name, length) != 0) continue;
    if (name[length - 1] == '/') {
      while (length < size && rest[length] >= '0' && rest[length] <= '9') ++length;
    }
    return length < size && ends_value(rest[length]);
  }
  return false;
}

bool names_a_node(const char* text, std::size_t size) {
  constexpr char kPlace[] = "/dev/";
  constexpr std::size_t kLength = sizeof kPlace - 1;
  const char* const end = text + size;
  for (;;) {
    const void* found = memmem(text, static_cast<std::size_t>(end - text), kPlace, kLength);
    if (found == nullptr) return false;
    text = static_cast<const char*>(found) + kLength;
    if (!is_harmless(text, static_cast<std::size_t>(end - text))) return true;
  }
}

}  // namespace

bool may_declare(const char* text, std::size_t size, bool is_head) {
  if (is_head && !has_plain_head(text, size)) return true;
  for (const char* needle : kNeedles) {
    if (contains(text, size, needle)) return true;
  }
  return names_a_node(text, size);
}

}  // namespace usblease::hook
