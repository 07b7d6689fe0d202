// Which managed device a USB device is, by usb= and port= of the configuration.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/error.h"
#include "common/usb_sysfs.h"

namespace usblease::usb {

// What a <hostdev type='usb'> says about the device that it wants.
struct UsbSelector {
  std::optional<std::uint32_t> vendor;
  std::optional<std::uint32_t> product;
  std::optional<std::uint32_t> bus;
  std::optional<std::uint32_t> device;
  std::string port;  // "2.4", with bus
};

class Managed {
 public:
  explicit Managed(const Config& config) : config_(config) {}

  [[nodiscard]] bool any_usb() const;
  // The name of the managed device that this one is; "": it is not managed, as no hub ever is. Of several rules that
  // match, the one that says most counts.
  [[nodiscard]] std::string name_of(const UsbDevice& device) const;
  // The name of the managed device that the selector means, given what is plugged in; "": none. kRefused when that
  // cannot be told.
  [[nodiscard]] Result<std::string> find(const UsbSelector& selector, const std::vector<UsbDevice>& plugged) const;

 private:
  [[nodiscard]] Result<std::string> find_absent(const UsbSelector& selector) const;
  const Config& config_;
};

}  // namespace usblease::usb
