// The descriptors of the software dongle: a full-speed CDC-ACM serial adapter, which cdc_acm of a Linux guest drives.
// Full speed, because every USB controller that a guest may have takes it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace usblease::dongle {

inline constexpr std::uint8_t kNotifyIn = 0x81;
inline constexpr std::uint8_t kBulkOut = 0x02;
inline constexpr std::uint8_t kBulkIn = 0x82;
inline constexpr std::uint16_t kBulkPacketBytes = 64;
inline constexpr std::uint16_t kNotifyPacketBytes = 16;
inline constexpr std::uint8_t kNotifyInterval = 16;  // ms

inline std::vector<std::uint8_t> device_descriptor(std::uint16_t vendor, std::uint16_t product) {
  const auto low = [](std::uint16_t word) { return static_cast<std::uint8_t>(word & 0xff); };
  const auto high = [](std::uint16_t word) { return static_cast<std::uint8_t>(word >> 8); };
  return {18,   1,    0x00, 0x02, 0x02, 0, 0, 64, low(vendor), high(vendor), low(product), high(product),
          0x00, 0x01,     // bcdDevice
          1,    2,    3,  // manufacturer, product, serial
          1};
}

inline std::vector<std::uint8_t> configuration_descriptor() {
  std::vector<std::uint8_t> all = {
      9,
      2,
      0,
      0,
      2,
      1,
      0,
      0xC0,
      50,  // two interfaces, self-powered, 100 mA
      9,
      4,
      0,
      0,
      1,
      0x02,
      0x02,
      0x01,
      0,  // communications: abstract control model, AT commands
      5,
      0x24,
      0x00,
      0x10,
      0x01,  // CDC header 1.10
      5,
      0x24,
      0x01,
      0x00,
      1,  // call management: none, data interface 1
      4,
      0x24,
      0x02,
      0x02,  // ACM: line coding and control line state
      5,
      0x24,
      0x06,
      0,
      1,  // union: control 0, data 1
      7,
      5,
      kNotifyIn,
      3,
      kNotifyPacketBytes,
      0,
      kNotifyInterval,
      9,
      4,
      1,
      0,
      2,
      0x0A,
      0,
      0,
      0,  // data
      7,
      5,
      kBulkOut,
      2,
      kBulkPacketBytes,
      0,
      0,
      7,
      5,
      kBulkIn,
      2,
      kBulkPacketBytes,
      0,
      0,
  };
  all[2] = static_cast<std::uint8_t>(all.size());
  return all;
}

// ASCII only.
inline std::vector<std::uint8_t> string_descriptor(std::string_view text) {
  std::vector<std::uint8_t> out = {static_cast<std::uint8_t>(2 + 2 * text.size()), 3};
  for (const char c : text) {
    out.push_back(static_cast<std::uint8_t>(c));
    out.push_back(0);
  }
  return out;
}

inline std::vector<std::uint8_t> language_descriptor() { return {4, 3, 0x09, 0x04}; }  // English (United States)

}  // namespace usblease::dongle
