// The domain XML on stdin: bounded in bytes and in time. C library alone, see quick_look.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace usblease::hook {

inline constexpr std::size_t kXmlBytesMax = 16UL * 1024 * 1024;
inline constexpr std::uint64_t kInputBytesMax = 256ULL * 1024 * 1024;  // what is read at most of XML that is too large

enum class InputOutcome : unsigned char {
  kWhole,     // the text is all there
  kTooLarge,  // more than kXmlBytesMax: all of it was looked through, and not kept
  kLate,      // it did not end in time
  kBroken,    // it cannot be read, or there is no memory for it
};

class Input {
 public:
  Input() = default;
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() { std::free(text_); }  // NOLINT(cppcoreguidelines-owning-memory): there is no C++ library to own it

  // Reads to the end of file; once. `deadline_ns` is of CLOCK_BOOTTIME.
  InputOutcome read_all(int fd, std::uint64_t deadline_ns);

  [[nodiscard]] const char* text() const { return text_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  // After kWhole and kTooLarge: what quick_look.h says. Else true.
  [[nodiscard]] bool may_declare() const { return may_declare_; }

 private:
  bool make_room();
  void look(bool last);
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::size_t room_ = 0;
  bool too_large_ = false;
  bool found_ = false;
  bool may_declare_ = true;
};

}  // namespace usblease::hook
