// A cluster in a test: a core, and short words for the commands that reach it.
#pragma once

#include <check.h>
#undef fail  // a macro of Check that is our function too

#include <initializer_list>
#include <string>
#include <vector>

#include "daemon/lease/core.h"
#include "daemon/lease/keys.h"

namespace usblease::lease::test {

// Twelve hex digits that tell names apart.
inline std::string digits_of(const std::string& name) {
  std::string digits;
  for (const char c : name) {
    digits += "0123456789abcdef"[static_cast<unsigned char>(c) / 16 % 16];
    digits += "0123456789abcdef"[static_cast<unsigned char>(c) % 16];
  }
  digits.resize(12, '0');
  return digits;
}

inline std::string boot_of(const std::string& host, int boot = 1) {
  const std::string number = std::to_string(boot);
  return std::string(8 - number.size(), '0') + number + "-0000-4000-8000-" + digits_of(host);
}

inline std::string uuid_of(const std::string& guest) { return "11111111-2222-4333-8444-" + digits_of(guest); }

// Start number n of a guest on a host.
inline record::Start start_of(const std::string& guest, const std::string& host, int n = 1, int boot = 1) {
  record::Start start;
  start.set_guest_uuid(uuid_of(guest));
  const std::string number = std::to_string(n);
  start.set_nonce(std::string(16 - number.size(), '0') + number);
  start.set_host_id(host);
  start.set_boot_id(boot_of(host, boot));
  start.set_domain_id(-1);
  return start;
}

struct Plug {
  std::uint64_t counter = 1;
  bool present = true;
  int boot = 1;
  record::DeviceKind kind = record::DEVICE_KIND_ENDPOINT;
  record::Policy policy = {};
};

struct Ask {
  std::uint32_t wait_ms = 60'000;
  int priority = 0;
  std::uint64_t duration_s = 0;
  bool reservation = false;
  int start = 1;
  int boot = 1;
};

struct FloorSaid {
  std::string device;
  std::uint64_t armed = 0;
  std::uint64_t fenced = 0;
  std::uint64_t instance = 1;
  int boot = 1;
};

class World {
 public:
  World() : core(make_state("test")) {}

  Core core;
  std::uint64_t now_unix_s = 1'000'000;
  Decision last;
  std::vector<std::string> story;  // an event a line, since the last told()

  std::vector<std::string> applied;  // every command, serialised

  const command::Reply& apply(const command::Command& command) {
    applied.push_back(command.SerializeAsString());
    last = core.apply(command, Context{now_unix_s});
    for (const record::Event& event : last.events) story.push_back(line_of(event));
    return last.reply;
  }

  command::Code host(const std::string& id, int boot = 1, std::initializer_list<FloorSaid> floors = {},
                     bool has_floors = true, const std::string& machine = "") {
    command::Command command;
    command::RegisterHost& c = *command.mutable_register_host();
    c.mutable_host()->set_id(id);
    c.mutable_host()->set_name(id);
    c.mutable_host()->set_boot_id(boot_of(id, boot));
    c.mutable_host()->set_machine_uuid(machine.empty() ? "machine-" + id : machine);
    for (const auto rung : rungs) c.mutable_host()->add_rungs(rung);
    c.set_has_floors(has_floors);
    for (const FloorSaid& said : floors) {
      command::Floor& floor = *c.add_floors();
      floor.set_device(said.device);
      floor.set_armed(said.armed);
      floor.set_fenced(said.fenced);
      floor.set_instance(said.instance);
      floor.set_boot_id(boot_of(id, said.boot));
    }
    return apply(command).status().code();
  }
  std::vector<record::Rung> rungs = {record::RUNG_ADMISSION, record::RUNG_RELAY, record::RUNG_UNBIND};

  command::Code plug(const std::string& device, const std::string& host, const Plug& how = {}) {
    command::Command command;
    command::ReportDevice& c = *command.mutable_report_device();
    c.set_device(device);
    c.mutable_presence()->mutable_instance()->set_host_id(host);
    c.mutable_presence()->mutable_instance()->set_boot_id(boot_of(host, how.boot));
    c.mutable_presence()->mutable_instance()->set_counter(how.counter);
    c.mutable_presence()->set_present(how.present);
    c.mutable_presence()->mutable_identity()->set_kind(how.kind);
    *c.mutable_policy() = how.policy;
    return apply(command).status().code();
  }

  command::Code unplug(const std::string& device, const std::string& host, Plug how = {}) {
    how.present = false;
    return plug(device, host, how);
  }

  command::Code forget(const std::string& device, const std::string& host) {
    command::Command command;
    command.mutable_forget_device()->set_device(device);
    command.mutable_forget_device()->set_host_id(host);
    return apply(command).status().code();
  }

  // `who` is GUEST@HOST.
  command::Code acquire(const std::string& request, const std::string& who, std::initializer_list<const char*> devices,
                        const Ask& ask = {}) {
    command::Command command;
    command::Acquire& c = *command.mutable_acquire();
    c.set_request_id(request);
    *c.mutable_start() = start(who, ask.start, ask.boot);
    c.set_guest_name(who.substr(0, who.find('@')));
    for (const char* device : devices) c.add_devices(device);
    c.set_priority(ask.priority);
    c.set_duration_s(ask.duration_s);
    c.set_wait_ms(ask.wait_ms);
    c.set_reservation(ask.reservation);
    c.set_principal("root@test");
    return apply(command).status().code();
  }

  command::Code cancel(const std::string& request, command::Code code = command::CODE_TIMED_OUT) {
    command::Command command;
    command.mutable_cancel_request()->set_request_id(request);
    command.mutable_cancel_request()->set_code(code);
    command.mutable_cancel_request()->set_reason("test");
    return apply(command).status().code();
  }

  command::Code release(const std::string& who, std::initializer_list<const char*> devices = {}, int start_number = 1,
                        int boot = 1) {
    command::Command command;
    *command.mutable_release()->mutable_start() = start(who, start_number, boot);
    for (const char* device : devices) command.mutable_release()->add_devices(device);
    return apply(command).status().code();
  }

  command::Code revoke(const std::string& device, std::uint32_t grace_ms, std::uint64_t token = 0) {
    command::Command command;
    command.mutable_revoke()->set_device(device);
    command.mutable_revoke()->set_grace_ms(grace_ms);
    command.mutable_revoke()->set_token(token);
    command.mutable_revoke()->set_reason("needed elsewhere");
    command.mutable_revoke()->set_principal("anna");
    return apply(command).status().code();
  }

  command::Code grace_over(const std::string& device, std::uint64_t token) {
    command::Command command;
    command.mutable_grace_over()->set_device(device);
    command.mutable_grace_over()->set_token(token);
    return apply(command).status().code();
  }

  command::Code until_over(const std::string& device, std::uint64_t token) {
    command::Command command;
    command.mutable_until_over()->set_device(device);
    command.mutable_until_over()->set_token(token);
    return apply(command).status().code();
  }

  command::Code extend(const std::string& device, std::uint64_t duration_s, std::uint64_t token = 0) {
    command::Command command;
    command.mutable_extend()->set_device(device);
    command.mutable_extend()->set_duration_s(duration_s);
    command.mutable_extend()->set_token(token);
    return apply(command).status().code();
  }

  command::Code fenced(const std::string& device, std::uint64_t token, const std::string& host,
                       std::uint64_t counter = 1, int boot = 1) {
    command::Command command;
    command::ConfirmFenced& c = *command.mutable_confirm_fenced();
    c.set_device(device);
    c.set_token(token);
    c.mutable_instance()->set_host_id(host);
    c.mutable_instance()->set_boot_id(boot_of(host, boot));
    c.mutable_instance()->set_counter(counter);
    c.set_how("end of stream");
    return apply(command).status().code();
  }

  command::Code host_gone(const std::string& host, int boot = 1) {
    command::Command command;
    command.mutable_host_gone()->set_host_id(host);
    command.mutable_host_gone()->set_boot_id(boot_of(host, boot));
    return apply(command).status().code();
  }

  command::Code declare_dead(const std::string& host, const std::string& boot_id = "") {
    command::Command command;
    command.mutable_declare_dead()->set_host_id(host);
    command.mutable_declare_dead()->set_boot_id(boot_id);
    command.mutable_declare_dead()->set_principal("anna");
    return apply(command).status().code();
  }

  command::Code new_epoch(std::uint64_t epoch) {
    command::Command command;
    command.mutable_new_epoch()->set_epoch(epoch);
    command.mutable_new_epoch()->set_principal("anna");
    return apply(command).status().code();
  }

  // --- membership: keys and secrets are told apart by one digit -------------------------------------

  static std::string hex(int n, std::size_t digits) { return std::string(digits - 1, 'a') + std::to_string(n % 10); }
  static record::Member member(const std::string& host, int key = 1) {
    record::Member member;
    member.set_host_id(host);
    member.add_addresses(host + ":7471");
    member.set_key_sha256(hex(key, 64));
    return member;
  }

  command::Code found(const std::string& host, int key = 1) {
    command::Command command;
    *command.mutable_found_cluster()->mutable_member() = member(host, key);
    command.mutable_found_cluster()->mutable_member()->mutable_store()->set_role(record::STORE_ROLE_VOTER);
    command.mutable_found_cluster()->set_principal("anna");
    return apply(command).status().code();
  }

  command::Code add(const std::string& host, int token, std::uint64_t valid_s = 3600) {
    command::Command command;
    record::JoinToken& t = *command.mutable_add_host()->mutable_token();
    t.set_id(hex(token, 16));
    t.set_host_id(host);
    t.set_secret_sha256(hex(token, 64));
    t.set_expires_unix_s(now_unix_s + valid_s);
    command.mutable_add_host()->set_principal("anna");
    return apply(command).status().code();
  }

  command::Code join(const std::string& host, int token, int key, int secret = -1) {
    command::Command command;
    command.mutable_join()->set_token_id(hex(token, 16));
    command.mutable_join()->set_secret_sha256(hex(secret < 0 ? token : secret, 64));
    *command.mutable_join()->mutable_member() = member(host, key);
    return apply(command).status().code();
  }

  command::Code store_role(const std::string& host, record::StoreRole role) {
    command::Command command;
    command.mutable_update_member()->set_host_id(host);
    command.mutable_update_member()->mutable_store()->set_role(role);
    return apply(command).status().code();
  }

  command::Code remove(const std::string& host) {
    command::Command command;
    command.mutable_remove_host()->set_host_id(host);
    command.mutable_remove_host()->set_principal("anna");
    return apply(command).status().code();
  }

  command::Code drain(const std::string& host, bool undo = false, std::uint32_t grace_ms = 0) {
    command::Command command;
    command.mutable_drain_host()->set_host_id(host);
    command.mutable_drain_host()->set_undo(undo);
    command.mutable_drain_host()->set_grace_ms(grace_ms);
    command.mutable_drain_host()->set_principal("anna");
    return apply(command).status().code();
  }

  [[nodiscard]] record::Standing standing(const std::string& host) const {
    const auto found = state().members.find(host);
    return found == state().members.end() ? record::STANDING_UNSPECIFIED : found->second.standing();
  }

  [[nodiscard]] const State& state() const { return core.state(); }
  [[nodiscard]] const record::Device& device(const std::string& name) const { return core.state().devices.at(name); }
  [[nodiscard]] const record::Lease& lease(const std::string& name) const { return device(name).lease(); }

  // "web@h1 1 granted": who has it, under which token, and how it stands; "free".
  [[nodiscard]] std::string holder(const std::string& name) const {
    if (!device(name).has_lease()) return "free";
    const record::Lease& l = lease(name);
    const char* phase = l.phase() == record::PHASE_GRANTED    ? "granted"
                        : l.phase() == record::PHASE_REVOKING ? "revoking"
                                                              : "fencing";
    return l.guest_name() + "@" + l.start().host_id() + " " + std::to_string(l.token()) + " " + phase;
  }

  // "r1 granted dongle 1" and such, in the order in which they were settled by the last command.
  [[nodiscard]] std::string settled() const {
    std::string out;
    for (const Settled& s : last.settled) {
      out += (out.empty() ? "" : "; ") + s.request_id + " " + command::Code_Name(s.reply.status().code()).substr(5);
      for (const auto& grant : s.reply.grants()) out += " " + grant.device() + " " + std::to_string(grant.token());
    }
    return out;
  }

  // The queue of a device: request ids, first one first.
  [[nodiscard]] std::string queue(const std::string& device) const {
    std::string out;
    for (const auto* request : queue_of(core.state(), device)) out += (out.empty() ? "" : " ") + request->id();
    return out;
  }

  // The events since the last call, a line each.
  std::string told() {
    std::string out;
    for (const std::string& line : story) out += line + "\n";
    story.clear();
    return out;
  }

 private:
  static record::Start start(const std::string& who, int number, int boot) {
    const auto at = who.find('@');
    return start_of(who.substr(0, at), who.substr(at + 1), number, boot);
  }

  static std::string line_of(const record::Event& event) {
    std::string out = event.kind();
    if (!event.device().empty()) out += " " + event.device();
    if (!event.guest().empty()) out += " " + event.guest() + "@" + event.host();
    if (event.guest().empty() && !event.host().empty()) out += " at " + event.host();
    if (event.token() != 0) out += " token " + std::to_string(event.token());
    return out;
  }
};

inline std::vector<std::pair<std::string, std::string>> entries_of(const State& state) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const Change& change : encode(state)) out.emplace_back(change.key, *change.value);
  return out;
}

}  // namespace usblease::lease::test

// A comparison of texts that prints both.
#define ASSERT_TEXT(got, expected)                             \
  do {                                                         \
    const std::string got_text = (got);                        \
    const std::string expected_text = (expected);              \
    ck_assert_str_eq(got_text.c_str(), expected_text.c_str()); \
  } while (false)
#define ASSERT_OK(got) ck_assert_int_eq((got), usblease::command::CODE_OK)
#define ASSERT_REFUSED(got) ck_assert_int_eq((got), usblease::command::CODE_REFUSED)
#define ASSERT_QUEUED(got) ck_assert_int_eq((got), usblease::command::CODE_QUEUED)
