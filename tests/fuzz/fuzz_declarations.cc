// Any bytes as domain XML: nothing crashes or hangs, and the look without a parser never misses what the rules find.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "plugin/libvirt/declarations.h"
#include "plugin/libvirt/quick_look.h"

using namespace usblease;
using namespace usblease::hook;

namespace {

constexpr const char* kConfig =
    "[device dongle]\nusb=0529:0001:A1\n[device hsm]\nusb=1050:0030\n[device probe]\nendpoint=unix:/run/probe.sock\n";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Result<Config> config = parse_config(kConfig, "fuzz");
  static const Sysfs sysfs("/nonexistent");
  const std::string_view xml(reinterpret_cast<const char*>(data), size);
  const bool may = may_declare(xml.data(), xml.size(), true);
  const auto domain = parse_domain(xml);
  if (!domain) return 0;
  const auto declared = find_declarations(
      *domain, []() -> Result<const Config*> { return &*config; }, sysfs);
  if (declared && declared->size() > kDeclaredMax) std::abort();
  if (!may && (!declared || !declared->empty())) std::abort();
  return 0;
}
