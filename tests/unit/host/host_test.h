// What the host's tests share: a directory that goes away, and waiting on the main loop with a bound.
#pragma once

#include <ftw.h>
#include <glib.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "common/error.h"
#include "common/main_loop.h"
#include "tests/lib/check_suite.h"

namespace usblease::test {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    char path[] = "/tmp/usblease-test-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(path));
    path_ = path;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    nftw(
        path_.c_str(), [](const char* path, const struct stat*, int, struct FTW*) { return remove(path); }, 16,
        FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
  }
  [[nodiscard]] std::string path(const std::string& name = "") const {
    return name.empty() ? path_ : path_ + "/" + name;
  }

 private:
  std::string path_;
};

// Runs the main loop until `ready`, at most 20 s; false when it never was. `ready` is
// asked after every event.
inline bool run_until(const std::function<bool()>& ready, std::uint64_t bound_ms = 20'000) {
  bool late = false;
  const auto bound = run_after(bound_ms * 1'000'000, [&] { late = true; });
  while (!late) {
    if (ready()) return true;
    g_main_context_iteration(nullptr, TRUE);
  }
  return false;
}

// Runs the main loop until everything that was already posted, from this thread, has run.
inline void run_posted() {
  bool done = false;
  post([&] { done = true; });
  ck_assert(run_until([&] { return done; }));
}

// ck_assert_str_eq would keep a pointer into a temporary.
inline void expect_text(const std::string& got, const std::string& expected) {
  ck_assert_msg(got == expected, "expected \"%s\", got \"%s\"", expected.c_str(), got.c_str());
}

inline void expect_code(const Error& error, ErrorCode code, const char* part) {
  ck_assert_msg(error.code == code, "code %d: %s", static_cast<int>(error.code), error.message.c_str());
  ck_assert_msg(error.message.find(part) != std::string::npos, "\"%s\" does not say \"%s\"", error.message.c_str(),
                part);
}

}  // namespace usblease::test
