// A software memory stick (bulk-only transport, SCSI), as far as SeaBIOS needs one to boot from it. Its first sector is
// a program that reads sectors for ever: that is the guest's traffic.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace usblease::test {

inline constexpr std::uint16_t kStickVendor = 0x1209;  // pid.codes, products for tests
inline constexpr std::uint16_t kStickProduct = 0x0002;
inline constexpr std::uint8_t kStickIn = 0x81;
inline constexpr std::uint8_t kStickOut = 0x02;

inline constexpr std::array<std::uint8_t, 18> kStickDevice = {18,
                                                              1,
                                                              0x00,
                                                              0x02,
                                                              0,
                                                              0,
                                                              0,
                                                              64,
                                                              kStickVendor & 0xff,
                                                              kStickVendor >> 8,
                                                              kStickProduct & 0xff,
                                                              kStickProduct >> 8,
                                                              0x00,
                                                              0x01,
                                                              0,
                                                              0,
                                                              0,
                                                              1};
inline constexpr std::array<std::uint8_t, 32> kStickConfiguration = {
    9, 2, 32,        0, 1,    1,    0, 0x80, 50,  // configuration 1, one interface
    9, 4, 0,         0, 2,    8,    6, 0x50, 0,   // mass storage, SCSI, bulk-only
    7, 5, kStickIn,  2, 0x00, 0x02, 0,            // 512 bytes
    7, 5, kStickOut, 2, 0x00, 0x02, 0};

class Stick {
 public:
  using Bytes = std::vector<std::uint8_t>;

  // The answer to a control request of a device-to-host kind; nullopt: stall.
  static std::optional<Bytes> control(std::uint8_t type, std::uint8_t request, std::uint16_t value,
                                      std::uint16_t length) {
    Bytes answer;
    if (type == 0x80 && request == 6 && value >> 8 == 1) {
      answer.assign(kStickDevice.begin(), kStickDevice.end());
    } else if (type == 0x80 && request == 6 && value >> 8 == 2) {
      answer.assign(kStickConfiguration.begin(), kStickConfiguration.end());
    } else if (type == 0xa1 && request == 0xfe) {
      answer = {0};  // one logical unit
    } else if ((type & 0x80) != 0) {
      return std::nullopt;
    }
    answer.resize(std::min<std::size_t>(answer.size(), length));
    return answer;
  }

  void bulk_out(std::span<const std::uint8_t> bytes) {
    if (bytes.size() != 31 || std::memcmp(bytes.data(), "USBC", 4) != 0) return;
    std::memcpy(tag_.data(), &bytes[4], tag_.size());
    const std::size_t wanted = bytes[8] | bytes[9] << 8 | bytes[10] << 16;
    data_ = answer_of(bytes.subspan(15));
    data_.resize(std::min(data_.size(), wanted));
    sent_ = 0;
  }

  Bytes bulk_in(std::size_t length) {
    if (sent_ < data_.size()) {
      const std::size_t now = std::min(length, data_.size() - sent_);
      const auto from = data_.begin() + static_cast<std::ptrdiff_t>(sent_);
      sent_ += now;
      return {from, from + static_cast<std::ptrdiff_t>(now)};
    }
    return {'U', 'S', 'B', 'S', tag_[0], tag_[1], tag_[2], tag_[3], 0, 0, 0, 0, 0};
  }

 private:
  static Bytes boot_sector() {
    Bytes sector = {
        0x31, 0xc0,        //       xor ax, ax
        0x8e, 0xc0,        //       mov es, ax
        0x8e, 0xd0,        //       mov ss, ax
        0xbc, 0x00, 0x7c,  //       mov sp, 0x7c00
        0xb8, 0x08, 0x02,  // again: mov ax, 0x0208   read 8 sectors
        0xb9, 0x02, 0x00,  //       mov cx, 2         from the second one
        0xb6, 0x00,        //       mov dh, 0         of the drive in dl
        0xbb, 0x00, 0x80,  //       mov bx, 0x8000
        0xcd, 0x13,        //       int 0x13
        0xeb, 0xf1,        //       jmp again
    };
    sector.resize(512);
    sector[510] = 0x55;
    sector[511] = 0xaa;
    return sector;
  }

  static Bytes answer_of(std::span<const std::uint8_t> command) {
    Bytes answer;
    switch (command[0]) {
      case 0x03:  // REQUEST SENSE
        answer.resize(18);
        answer[0] = 0x70;
        break;
      case 0x12: {  // INQUIRY
        const std::string text = "USBLEASETEST STICK      1.0 ";
        answer = {0, 0x80, 0, 0, 31, 0, 0, 0};
        answer.insert(answer.end(), text.begin(), text.end());
        break;
      }
      case 0x25:  // READ CAPACITY: 131072 blocks of 512 bytes
        answer = {0, 1, 0xff, 0xff, 0, 0, 2, 0};
        break;
      case 0x28:  // READ(10)
        if (command[2] == 0 && command[3] == 0 && command[4] == 0 && command[5] == 0) answer = boot_sector();
        answer.resize(static_cast<std::size_t>(command[7] << 8 | command[8]) * 512);
        break;
      default:
        break;
    }
    return answer;
  }

  std::array<std::uint8_t, 4> tag_{};
  Bytes data_;
  std::size_t sent_ = 0;
};

}  // namespace usblease::test
