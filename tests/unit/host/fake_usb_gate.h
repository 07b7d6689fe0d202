// The doors of USB devices, of wood.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/main_loop.h"
#include "daemon/host/usb_gate.h"

namespace usblease::test {

// Both doors move at once, unless they are told not to; what was asked of them is kept in order.
class FakeGate final : public host::UsbGate {
 public:
  bool kernel = true;
  bool stuck = false;  // the driver does not answer
  std::vector<std::string> calls;
  host::UsbLease armed;
  host::UsbHolder holder;
  pid_t reset_by = 0;
  bool slow_bind = false;  // does not come to its end
  std::uint64_t refused = 0;
  int counted = 0;

  [[nodiscard]] Result<void> check_kernel() const override {
    return kernel ? Result<void>() : fail(ErrorCode::kUnavailable, "no fence here");
  }
  void arm(const host::UsbPlace& place, const host::UsbLease& lease, const host::UsbHolder& by,
           Done<void> done) override {
    calls.push_back("arm " + place.port);
    armed = lease;
    holder = by;
    answer(std::move(done), check_kernel());
  }
  void extend(const host::UsbPlace& /*place*/, const host::UsbLease& lease) override {
    if (lease.token == armed.token) armed = lease;
  }
  void disarm(const host::UsbPlace& place, std::uint64_t token, Done<void> done) override {
    calls.push_back("disarm " + place.port);
    if (armed.token == token) armed.deadline_ns = 0;
    answer(std::move(done), check_kernel());
  }
  void look(const host::UsbPlace& /*place*/, Done<host::UsbLease> done) override {
    post([done = std::move(done), lease = armed] { done(lease); });
  }
  void count_refused(const std::vector<host::UsbPlace>& places, Done<std::vector<std::uint64_t>> done) override {
    ++counted;
    post([done = std::move(done), counts = std::vector<std::uint64_t>(places.size(), refused)] { done(counts); });
  }
  void bind(const host::UsbPlace& place, bool reset, Done<void> done) override {
    calls.push_back("bind " + place.port);
    reset_by = reset ? holder.pid : 0;
    if (!slow_bind) answer(std::move(done), {});
  }
  void unbind(const host::UsbPlace& place, Done<void> done) override {
    calls.push_back("unbind " + place.port);
    if (!stuck) answer(std::move(done), {});
  }

 private:
  static void answer(Done<void> done, const Result<void>& result) {
    post([done = std::move(done), result] { done(result); });
  }
};

}  // namespace usblease::test
