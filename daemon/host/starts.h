// The starts of guests on this host: which exist, which process each is, and when each has ended. A lease belongs to
// one start; a late hook of one start must not touch the lease of another.
//
// Whether a start has ended is decided by its QEMU process where that is known (pidfd), and by the hook only while it
// is not: a start that was refused or failed never had one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "api.pb.h"
#include "common/main_loop.h"
#include "daemon/host/guest_process.h"
#include "daemon/host/hypervisor.h"
#include "record.pb.h"

namespace usblease::host {

struct GuestStart {
  record::Start start;
  std::string guest_name;
  std::optional<GuestProcess> process;  // set: it runs
  ExitWatch exit_watch;
  bool reservation = false;       // made by the hook's migrate, not prepared yet
  bool declared_started = false;  // libvirt's `started` hook came, or libvirt lists it as running
  SourceHandle look;              // for a process that is about to be there
  SourceHandle check;             // a start that never gets a process is ended after kPrepareMax
  [[nodiscard]] bool running() const { return process.has_value() && declared_started; }
};

// Of a lease taken by AcquireLease: no guest of libvirt's stands behind it, and whoever took it gives it back. A start
// that migrates here has no domain yet either, but libvirt's hook has announced it.
inline bool is_bare(const record::Start& start) { return start.domain_id() < 0 && start.prepared_boottime_ns() == 0; }

class Starts {
 public:
  struct Options {
    std::string host_id;
    std::string boot_id;
    std::string libvirt_run_dir;
  };
  // `ended` is called after the start was removed; `running` when it first runs; `process` when its QEMU is known,
  // which may be before that.
  Starts(Options options, std::function<void(const record::Start&)> ended,
         std::function<void(const GuestStart&)> running, std::function<void(const GuestStart&)> process = nullptr);

  // From the hook's prepare or migrate. Earlier starts of the guest that cannot be running any more are ended.
  const GuestStart& prepare(const api::HookCall& call);
  // The destination of a migration prepares: its start is the one that `migrate` began. nullptr: there is none.
  const GuestStart* claim_reservation(const api::HookCall& call);
  // From the hook's started: its QEMU can be found now.
  void started(const api::HookCall& call);
  // From the hook's start: its QEMU is looked for from now on, until it is there, rather than when libvirt has started
  // it.
  void expect_process(const record::Start& start);
  // From the hook's stopped and release: ends those starts that this call can be about, and no other.
  void stopped(const api::HookCall& call);
  // A running guest that no hook announced: `usblease attach`.
  Result<const GuestStart*> running_guest(const Guest& guest);
  // From a record: leases and requests of an earlier daemon. `reservation`: the record is one, not prepared yet.
  void adopt(const record::Start& start, const std::string& guest_name, bool reservation);
  // All of them are adopted: what the hook said of them before is heard now.
  void all_adopted();
  // What libvirt says of all guests.
  void reconcile(const std::vector<Guest>& guests);
  // libvirt says that the guest stopped, without saying which start: its process decides.
  void check(const std::string& guest_uuid);
  // The guest's QEMU has shown itself on a guest socket.
  void seen(const std::string& guest_uuid, GuestProcess process);

  [[nodiscard]] const GuestStart* find(const record::Start& start) const;
  // The start that the hook's start and started calls are about.
  [[nodiscard]] const GuestStart* of_domain(const std::string& guest_uuid, int domain_id) const;
  [[nodiscard]] bool any_nonce(const std::function<bool(const std::string&)>& test) const;
  // The hook's caller was told no: the start is over before it began.
  void refused(const record::Start& start) { end(start.nonce(), "it was refused"); }
  [[nodiscard]] std::string new_nonce() const;

 private:
  GuestStart& add(const record::Start& start, const std::string& guest_name);
  void set_process(GuestStart& start, GuestProcess process);
  void set_running(GuestStart& start);
  void look_for_process(GuestStart& start);
  void look_soon(const std::string& nonce, std::uint64_t give_up_ns);
  void end(const std::string& nonce, const std::string& why);
  bool can_be_about(const GuestStart& start, const api::HookCall& call) const;
  std::vector<std::string> nonces_of(const std::string& guest_uuid) const;

  Options options_;
  std::function<void(const record::Start&)> ended_;
  std::function<void(const GuestStart&)> running_;
  std::function<void(const GuestStart&)> process_;
  std::map<std::string, GuestStart> starts_;  // by nonce
  bool all_adopted_ = false;
  std::vector<api::HookCall> early_ends_;  // stopped and release, before all_adopted()
};

}  // namespace usblease::host
