// The guest's end of a usbredir stream, as QEMU is: greets, waits for the device, and writes lines to its serial port.
#pragma once

#include <usbredirparser.h>

#include <cstdint>
#include <memory>
#include <string>

#include "common/fd.h"

namespace usblease::cluster_test {

class GuestStream {
 public:
  // `fd` is connected. Greets.
  explicit GuestStream(UniqueFd fd);
  GuestStream(const GuestStream&) = delete;
  GuestStream& operator=(const GuestStream&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool device_seen() const { return device_seen_; }
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] bool has_output() const;
  // Answers to lines that were written; each was a transfer that the device completed.
  [[nodiscard]] std::uint64_t completed() const { return completed_; }

  // One transfer. Only when device_seen().
  void write_line(const std::string& line);
  // Moves what can be moved without waiting.
  void pump();

 private:
  struct ParserFree {
    void operator()(usbredirparser* parser) const { usbredirparser_destroy(parser); }
  };
  static GuestStream& self(void* priv) { return *static_cast<GuestStream*>(priv); }
  void set_callbacks();

  UniqueFd fd_;
  std::unique_ptr<usbredirparser, ParserFree> parser_;
  std::uint64_t next_id_ = 1;
  std::uint64_t completed_ = 0;
  bool device_seen_ = false;
  bool ended_ = false;
};

}  // namespace usblease::cluster_test
