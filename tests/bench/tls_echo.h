// One round trip over TLS 1.3 on loopback with both sides authenticated: the floor of what hosts ask each other.
#pragma once

#include <memory>
#include <string>

#include "common/error.h"

namespace usblease::bench {

class TlsEcho {
 public:
  // Both ends use this identity; PEM files.
  static Result<TlsEcho> connect(const std::string& ca_file, const std::string& cert_file, const std::string& key_file);
  TlsEcho(TlsEcho&&) noexcept;
  TlsEcho& operator=(TlsEcho&&) = delete;
  TlsEcho(const TlsEcho&) = delete;
  TlsEcho& operator=(const TlsEcho&) = delete;
  ~TlsEcho();

  bool round_trip();  // 128 bytes there and back

 private:
  struct Impl;
  explicit TlsEcho(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace usblease::bench
