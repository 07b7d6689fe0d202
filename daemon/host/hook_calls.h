// What the libvirt hook asks, and what becomes of it: admission of a guest's start, and the return of its leases.
// Never calls libvirt: libvirt waits for the hook meanwhile.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "api.pb.h"
#include "daemon/host/acquisitions.h"
#include "daemon/host/starts.h"

namespace usblease::host {

class HookCalls {
 public:
  using Answer = std::function<void(command::Code, std::string message)>;
  // The device's record as last pushed; nullptr when it does not concern this host.
  using FindDevice = std::function<const record::Device*(const std::string&)>;
  using Release = std::function<void(const record::Start&, const std::string& why)>;

  // Calls `ready` when all that the start's QEMU opens by itself is open for it, or cannot be.
  using BeforeStart = std::function<void(const record::Start&, const std::function<void(Result<void>)>& ready)>;

  HookCalls(Starts& starts, Acquisitions& acquisitions, FindDevice find_device, Release release,
            BeforeStart before_start);

  // Answers once. `abandoned` of the caller: see abandon().
  void handle(const api::HookCall& call, const std::string& principal, const Answer& answer);
  // The hook went away before its answer: what it had asked for goes back.
  void abandon(const api::HookCall& call);

 private:
  void prepare(const api::HookCall& call, const std::string& principal, const Answer& answer);
  void admit(const api::HookCall& call, const std::string& principal, const Answer& answer, bool reservation);
  // Once more, waiting fence_wait_ms, when what is in the way is about to end. 0: not again.
  void ask(const command::Acquire& request, std::uint32_t fence_wait_ms, const Answer& answer);
  void check_start(const api::HookCall& call, const Answer& answer);
  void acquire_optional(const api::HookCall& call, const GuestStart& start, const std::string& principal);
  command::Acquire make_request(const api::HookCall& call, const GuestStart& start, const std::string& principal) const;

  Starts& starts_;
  Acquisitions& acquisitions_;
  FindDevice find_device_;
  Release release_;
  BeforeStart before_start_;
};

}  // namespace usblease::host
