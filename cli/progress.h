// What a person sees while `attach` waits: on a terminal one line of stderr that changes, else a line at each change.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api.pb.h"

namespace usblease::cli {

// "waiting for dongle: held by guest vm1 on host1 until 18:03:11 (token 17), 2 ahead". Escaped.
std::string progress_text(const api::AttachProgress& progress, const std::string& guest,
                          const std::vector<std::string>& devices, std::uint64_t now_unix_s);

class ProgressLine {
 public:
  // `quiet`: shows nothing.
  explicit ProgressLine(bool quiet);
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const std::string& text);
  // Takes the line off the terminal; what follows begins at the left edge.
  void clear();

 private:
  bool quiet_;
  bool terminal_;
  std::string shown_;
};

}  // namespace usblease::cli
