#include "daemon/host/usb_place.h"

#include <sstream>

namespace usblease::host {

UsbPlace place_of(const usb::UsbDevice& device) { return {device.name, device.bus, device.device, device.inode}; }

std::string to_text(const UsbPlace& place) {
  return place.port + " " + std::to_string(place.bus) + " " + std::to_string(place.device) + " " +
         std::to_string(place.inode);
}

std::optional<UsbPlace> parse_place(const std::string& text) {
  std::istringstream words(text);
  UsbPlace place;
  if (!(words >> place.port >> place.bus >> place.device >> place.inode) || !(words >> std::ws).eof())
    return std::nullopt;
  return place;
}

}  // namespace usblease::host
