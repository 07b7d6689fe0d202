// RAII for what GLib allocates: GPtr<GKeyFile, g_key_file_unref>, GChars, GErrorPtr.
#pragma once

#include <glib.h>

#include <memory>

namespace usblease {

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};

template <typename T, auto Free>
using GPtr = std::unique_ptr<T, Freer<Free>>;

using GChars = GPtr<char, g_free>;
using GStrings = GPtr<char*, g_strfreev>;

// Usage: GErrorOut error; g_foo(…, error.out()); if (error) … error.message()
class GErrorOut {
 public:
  GErrorOut() = default;
  GErrorOut(const GErrorOut&) = delete;
  GErrorOut& operator=(const GErrorOut&) = delete;
  ~GErrorOut() { g_clear_error(&error_); }
  GError** out() {
    g_clear_error(&error_);
    return &error_;
  }
  explicit operator bool() const { return error_ != nullptr; }
  const GError* get() const { return error_; }
  const char* message() const { return error_ != nullptr ? error_->message : "no error"; }

 private:
  GError* error_ = nullptr;
};

}  // namespace usblease
