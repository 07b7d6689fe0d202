// Arbitrary sequences of commands, valid and not, against what must hold of the record whatever comes. On a failure
// rapidcheck prints the shortest sequence that it found and the seed; RC_PARAMS="seed=…" runs it again.
#include <rapidcheck.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <set>

#include "daemon/lease/coordinator_session.h"
#include "tests/unit/lease/runner.h"
#include "tests/unit/lease/world.h"

namespace {

using namespace usblease;
using namespace usblease::lease;
using namespace usblease::lease::test;
using command::Command;

constexpr int kHosts = 3;
constexpr int kDevices = 4;

// One step, as small numbers that shrink; what they mean depends on the state, so that many of the commands fit it.
struct Op {
  std::uint8_t kind = 0;
  std::uint8_t a = 0;
  std::uint8_t b = 0;
  std::uint8_t c = 0;
};

std::ostream& operator<<(std::ostream& out, const Op& op) {
  return out << "{" << int{op.kind} << "," << int{op.a} << "," << int{op.b} << "," << int{op.c} << "}";
}

rc::Gen<Op> any_op() {
  const auto byte = rc::gen::resize(100, rc::gen::arbitrary<std::uint8_t>());
  return rc::gen::construct<Op>(byte, byte, byte, byte);
}

rc::Gen<std::vector<Op>> any_ops() {
  // Long ones from the start: short sequences hardly reach a second lease.
  return rc::gen::withSize(
      [](int size) { return rc::gen::resize(120 + 2 * size, rc::gen::container<std::vector<Op>>(any_op())); });
}

std::string host_name(int n) { return "h" + std::to_string(n % kHosts); }
std::string device_name(int n) { return "d" + std::to_string(n % kDevices); }

const record::Host* find_host(const State& state, const std::string& id) {
  const auto found = state.hosts.find(id);
  return found == state.hosts.end() ? nullptr : &found->second;
}

int boot_number(const State& state, const std::string& host) {
  const record::Host* known = find_host(state, host);
  return known == nullptr ? 1 : std::stoi(known->boot_id().substr(0, 8));
}

record::Start any_start(const State& state, const Op& op) {
  const std::string host = host_name(op.a / 4);
  const int boot = boot_number(state, host);
  return start_of("g" + std::to_string(op.a % 4), host, 1 + op.b % 2, op.b >= 248 ? boot + 1 : boot);
}

std::uint64_t any_token(const State& state, const std::string& device, std::uint8_t c) {
  const auto found = state.devices.find(device);
  const std::uint64_t last = found == state.devices.end() ? 0 : found->second.last_token();
  const std::uint64_t leased =
      found != state.devices.end() && found->second.has_lease() ? found->second.lease().token() : last;
  return c < 200 ? leased : c < 215 ? last : c < 235 ? leased - 1 : last + 1;
}

void fill_register(const State& state, const Op& op, command::RegisterHost& c) {
  const std::string host = host_name(op.a);
  const int boot = boot_number(state, host);
  const int now = op.b < 150 ? boot : op.b < 220 ? boot + 1 : std::max(1, boot - 1);
  c.mutable_host()->set_id(host);
  c.mutable_host()->set_boot_id(boot_of(host, now));
  c.mutable_host()->set_machine_uuid(op.a >= 240 ? "clone" : "machine-" + host);
  c.mutable_host()->add_rungs(record::RUNG_ADMISSION);
  if (op.c % 8 != 0) c.mutable_host()->add_rungs(record::RUNG_UNBIND);
  c.set_has_floors(op.c % 16 != 1);
  if (op.c < 128) return;
  const std::string device = device_name(op.c);
  const std::uint64_t token = any_token(state, device, op.c >= 252 ? 255 : op.a / 2);
  command::Floor& floor = *c.add_floors();
  floor.set_device(device);
  floor.set_armed(token);
  floor.set_fenced(op.c % 3 == 0 || token == 0 ? token : token - 1);
  floor.set_instance(op.b % 4);
  floor.set_boot_id(boot_of(host, op.b % 2 == 0 ? now : boot));
}

void fill_report(const State& state, const Op& op, command::ReportDevice& c) {
  const std::string host = host_name(op.a);
  const std::string device = device_name(op.b);
  c.set_device(device);
  std::uint64_t counter = 1;
  if (const auto known = state.devices.find(device); known != state.devices.end()) {
    for (const auto& home : known->second.homes()) {
      if (home.instance().host_id() == host) counter = home.instance().counter();
    }
  }
  record::Presence& presence = *c.mutable_presence();
  presence.mutable_instance()->set_host_id(host);
  presence.mutable_instance()->set_boot_id(boot_of(host, boot_number(state, host) + (op.a >= 250 ? 1 : 0)));
  presence.mutable_instance()->set_counter(counter + (op.c % 4 == 0 ? 1 : 0) - (op.c >= 248 && counter > 0 ? 1 : 0));
  presence.set_present(op.c % 3 != 0);
  const bool endpoint = op.b % kDevices == 3;
  presence.mutable_identity()->set_kind(endpoint ? record::DEVICE_KIND_ENDPOINT : record::DEVICE_KIND_USB);
  record::Policy& policy = *c.mutable_policy();
  policy.set_roams(op.b % kDevices == 1);
  if (op.b % kDevices == 2 && op.c >= 128) policy.add_guests("g1");
  if (op.b % kDevices == 2) policy.set_until_max_s(100);
  if (op.b % kDevices == 0) policy.set_min_rung(record::RUNG_UNBIND);
}

void fill_acquire(const State& state, const Op& op, command::Acquire& c) {
  c.set_request_id("r" + std::to_string(op.c % 16));
  *c.mutable_start() = any_start(state, op);
  c.set_guest_name("g" + std::to_string(op.a % 4));
  for (int i = 0; i < kDevices; ++i) {
    if ((op.b / 2 >> i) % 2 == 1) c.add_devices(device_name(i));
  }
  if (c.devices().empty() && op.b != 0) c.add_devices(device_name(op.b));
  c.set_priority(op.c / 16 % 3 - 1);
  c.set_wait_ms(op.c % 5 == 0 ? 0 : 1'000);
  c.set_duration_s(op.c / 32);
  c.set_reservation(op.c >= 224);
}

void fill_confirm(const State& state, const Op& op, command::ConfirmFenced& c) {
  const std::string device = device_name(op.a);
  c.set_device(device);
  c.set_token(any_token(state, device, op.c));
  c.mutable_instance()->set_host_id(host_name(op.b));
  c.mutable_instance()->set_boot_id(boot_of(host_name(op.b)));
  const auto found = state.devices.find(device);
  if (found != state.devices.end() && found->second.has_lease() && op.b < 220)
    *c.mutable_instance() = found->second.lease().instance();
}

std::string hex_of(int n, std::size_t digits) {
  const std::string number = std::to_string(n % 10);
  return std::string(digits - 1, 'a') + number;
}

void fill_member(const Op& op, record::Member& member) {
  member.set_host_id(host_name(op.a));
  member.set_key_sha256(hex_of(op.a + (op.c >= 240 ? 1 : 0), 64));
}

// Membership, in short: it founds early and joins often, so that clusters of several are reached.
void fill_membership(const State& state, int kind, const Op& op, Command& command) {
  const std::string host = host_name(op.a);
  if (kind == 0) {
    fill_member(op, *command.mutable_found_cluster()->mutable_member());
  } else if (kind == 1) {
    record::JoinToken& token = *command.mutable_add_host()->mutable_token();
    token.set_id(hex_of(op.a % kHosts, 16));
    token.set_host_id(host);
    token.set_secret_sha256(hex_of(op.b % 2, 64));
    token.set_expires_unix_s(1'000 + op.c * 400ULL);
  } else if (kind < 4) {
    command.mutable_join()->set_token_id(hex_of(op.a % kHosts, 16));
    command.mutable_join()->set_secret_sha256(hex_of(op.b % 2, 64));
    fill_member(op, *command.mutable_join()->mutable_member());
  } else if (kind == 4) {
    command.mutable_update_member()->set_host_id(host);
    command.mutable_update_member()->mutable_store()->set_role(static_cast<record::StoreRole>(op.b % 3));
  } else if (kind == 5) {
    command.mutable_remove_host()->set_host_id(host);
  } else if (kind == 6) {
    command.mutable_drain_host()->set_host_id(host);
    command.mutable_drain_host()->set_undo(op.b % 4 != 0);
    command.mutable_drain_host()->set_grace_ms(op.c % 2 * 1'000);
  } else {
    command::Restore& c = *command.mutable_restore();
    c.set_begin(op.b % 3 == 0);
    c.set_end(op.b % 3 == 1);
    c.set_epoch(state.meta.epoch() + 1);
    const auto found = state.devices.find(device_name(op.a));
    if (c.end() || found == state.devices.end()) return;
    record::Device& device = *c.add_devices();
    device = found->second;
    device.set_last_token(device.last_token() + op.c % 2);
    if (device.has_lease()) device.mutable_lease()->set_token(device.last_token());
  }
}

Command command_of(const State& state, const Op& op) {
  Command command;
  const std::string device = device_name(op.a);
  const int kind = op.kind % 72;
  if (kind < 6) {
    fill_register(state, op, *command.mutable_register_host());
  } else if (kind < 16) {
    fill_report(state, op, *command.mutable_report_device());
  } else if (kind < 17) {
    command.mutable_forget_device()->set_device(device);
    command.mutable_forget_device()->set_host_id(host_name(op.b));
  } else if (kind < 36) {
    fill_acquire(state, op, *command.mutable_acquire());
  } else if (kind < 38) {
    command.mutable_cancel_request()->set_request_id("r" + std::to_string(op.a % 16));
  } else if (kind < 43) {
    *command.mutable_release()->mutable_start() = any_start(state, op);
    if (op.c % 2 == 1) command.mutable_release()->add_devices(device_name(op.c / 2));
    if (op.c % 4 == 0) command.mutable_release()->set_request_id("r" + std::to_string(op.c / 4 % 16));
  } else if (kind < 46) {
    command.mutable_revoke()->set_device(device);
    command.mutable_revoke()->set_grace_ms(op.b % 3 * 1'000);
    command.mutable_revoke()->set_token(op.b % 2 == 0 ? 0 : any_token(state, device, op.c));
  } else if (kind < 48) {
    command.mutable_grace_over()->set_device(device);
    command.mutable_grace_over()->set_token(any_token(state, device, op.c));
  } else if (kind < 49) {
    command.mutable_until_over()->set_device(device);
    command.mutable_until_over()->set_token(any_token(state, device, op.c));
  } else if (kind < 50) {
    command.mutable_extend()->set_device(device);
    command.mutable_extend()->set_duration_s(op.b);
  } else if (kind < 60) {
    fill_confirm(state, op, *command.mutable_confirm_fenced());
  } else if (kind < 61) {
    command.mutable_host_gone()->set_host_id(host_name(op.a));
    command.mutable_host_gone()->set_boot_id(boot_of(host_name(op.a), boot_number(state, host_name(op.a))));
  } else if (kind < 62) {
    command.mutable_declare_dead()->set_host_id(host_name(op.a));
  } else if (kind < 63) {
    command.mutable_new_epoch()->set_epoch(state.meta.epoch() + op.a % 3);
  } else if (kind >= 64) {
    fill_membership(state, kind - 64, op, command);
  }  // else: no body
  return command;
}

// Most sequences begin with a cluster that works, so that they reach what comes after.
Core beginning(bool working) {
  Core core(make_state("property"));
  if (!working) return core;
  for (int i = 0; i < kHosts; ++i)
    core.apply(command_of(core.state(), {0, static_cast<std::uint8_t>(i), 0, 2}), Context{1});
  for (int i = 0; i < kDevices; ++i)
    core.apply(command_of(core.state(), {6, static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(i), 1}),
               Context{1});
  return core;
}

// --- what must hold --------------------------------------------------------------------------------

// The greatest token that may have been granted or armed, by device, kept apart from the core.
using Tokens = std::map<std::string, std::uint64_t>;

bool is_refusal(command::Code code) { return code != command::CODE_OK && code != command::CODE_QUEUED; }

bool same_instance(const record::Instance& a, const record::Instance& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

bool live_claim(const State& state, const record::Presence& home) {
  const record::Host* host = find_host(state, home.instance().host_id());
  return home.present() && host != nullptr && !host->gone() && host->boot_id() == home.instance().boot_id();
}

// Where a device could be granted now, found in another way than the core's.
bool grantable(const State& state, const record::Device& device) {
  if (device.has_lease()) return false;
  int live = 0;
  bool strong = false;
  for (const auto& home : device.homes()) {
    if (!live_claim(state, home)) continue;
    ++live;
    if (find_host(state, home.instance().host_id())->draining()) return false;
    const auto member = state.members.find(home.instance().host_id());
    const bool joined = member != state.members.end() && member->second.standing() == record::STANDING_JOINED;
    if (!state.members.empty() && !joined) return false;
    const auto& rungs = find_host(state, home.instance().host_id())->rungs();
    strong = device.policy().min_rung() == record::RUNG_UNSPECIFIED ||
             std::find(rungs.begin(), rungs.end(), record::RUNG_UNBIND) != rungs.end();
  }
  return live == 1 && strong;
}

// A device on a bus is for the guests of that host, as soon as one home alone claims it.
bool reaches(const State& state, const record::Device& device, const record::Start& start) {
  int live = 0;
  bool here = true;
  for (const auto& home : device.homes()) {
    if (!live_claim(state, home)) continue;
    ++live;
    here = home.identity().kind() == record::DEVICE_KIND_ENDPOINT || home.instance().host_id() == start.host_id();
  }
  return live != 1 || here;
}

bool same_start(const record::Start& a, const record::Start& b) {
  return a.guest_uuid() == b.guest_uuid() && a.nonce() == b.nonce() && a.host_id() == b.host_id() &&
         a.boot_id() == b.boot_id();
}

bool holds(const record::Device& device, const record::Start& start) {
  return device.has_lease() && device.lease().phase() == record::PHASE_GRANTED &&
         same_start(device.lease().start(), start);
}

// A request that nothing but others' leases keeps from being granted.
bool reachable(const State& state, const record::Request& request) {
  return std::all_of(request.devices().begin(), request.devices().end(), [&](const auto& name) {
    const record::Device& device = state.devices.at(name);
    return reaches(state, device, request.start()) && (device.has_lease() || grantable(state, device));
  });
}

bool before(const record::Request& a, const record::Request& b) {
  if (a.reservation() != b.reservation()) return a.reservation();
  if (a.priority() != b.priority()) return a.priority() > b.priority();
  return a.seq() < b.seq();
}

bool shares_a_device(const record::Request& a, const record::Request& b) {
  return std::any_of(a.devices().begin(), a.devices().end(), [&](const auto& name) {
    return std::find(b.devices().begin(), b.devices().end(), name) != b.devices().end();
  });
}

// Why the lease that `device` had before this command may be over now.
bool may_have_ended(const State& was, const record::Device& device, const Command& command) {
  const record::Lease& lease = device.lease();
  const record::Instance& instance = lease.instance();
  switch (command.body_case()) {
    case Command::kConfirmFenced: {
      const auto& c = command.confirm_fenced();
      return c.device() == device.name() && c.token() == lease.token() && same_instance(c.instance(), instance);
    }
    case Command::kReportDevice: {
      const auto& c = command.report_device();
      const auto& seen = c.presence().instance();
      if (c.device() != device.name() || !c.presence().present()) return false;
      if (seen.host_id() == instance.host_id())
        return seen.boot_id() != instance.boot_id() || seen.counter() > instance.counter();
      const record::Host* old_host = find_host(was, instance.host_id());
      const bool claimed = std::any_of(device.homes().begin(), device.homes().end(), [&](const auto& home) {
        return home.instance().host_id() == instance.host_id() && home.present();
      });
      return c.policy().roams() && (!claimed || old_host == nullptr || old_host->gone());
    }
    case Command::kRegisterHost: {
      const auto& c = command.register_host();
      const bool reboot_of_home = c.host().id() == instance.host_id() && c.host().boot_id() != instance.boot_id() &&
                                  device.homes_size() > 0 &&
                                  device.homes(0).identity().kind() == record::DEVICE_KIND_USB;
      const bool superseded = std::any_of(c.floors().begin(), c.floors().end(), [&](const auto& floor) {
        return floor.device() == device.name() && floor.armed() > lease.token() && floor.armed() > floor.fenced();
      });
      return reboot_of_home || superseded;
    }
    case Command::kDeclareDead:
      return command.declare_dead().host_id() == instance.host_id();
    case Command::kRestore:
      return lease.phase() == record::PHASE_FENCING &&
             std::any_of(command.restore().devices().begin(), command.restore().devices().end(), [&](const auto& d) {
               return d.name() == device.name() && d.has_lease() && d.lease().token() > lease.token();
             });
    default:
      return false;
  }
}

void check_leases(const State& was, const State& now, const Command& command, Tokens& tokens) {
  for (const auto& [name, device] : now.devices) {
    const auto old = was.devices.find(name);
    const record::Device* previous = old == was.devices.end() ? nullptr : &old->second;
    const std::uint64_t old_token = previous != nullptr && previous->has_lease() ? previous->lease().token() : 0;
    const std::uint64_t new_token = device.has_lease() ? device.lease().token() : 0;
    if (previous != nullptr) RC_ASSERT(device.last_token() >= previous->last_token());
    RC_ASSERT(device.last_token() >= new_token);
    if (old_token != 0 && old_token != new_token) RC_ASSERT(may_have_ended(was, *previous, command));
    const bool from_a_floor =
        new_token != 0 && (device.lease().request_id().empty() ||
                           (command.has_restore() && !command.restore().end() && new_token != old_token));
    if (new_token == 0 || (new_token == old_token && !from_a_floor)) {
      if (new_token != 0) {  // a lease never goes back, and never changes hands
        RC_ASSERT(device.lease().phase() >= previous->lease().phase());
        RC_ASSERT(same_start(device.lease().start(), previous->lease().start()));
        RC_ASSERT(same_instance(device.lease().instance(), previous->lease().instance()));
      }
    } else if (from_a_floor) {
      RC_ASSERT(device.lease().phase() == record::PHASE_FENCING);  // only a floor remembers it
    } else {
      // Granted: above everything before, at the one live home that claims it, while the store is not behind.
      RC_ASSERT(new_token > tokens[name]);
      RC_ASSERT(device.lease().phase() == record::PHASE_GRANTED);
      RC_ASSERT(now.meta.behind().empty());
      int claims = 0;
      for (const auto& home : device.homes()) {
        if (!live_claim(now, home)) continue;
        ++claims;
        RC_ASSERT(same_instance(home.instance(), device.lease().instance()));
      }
      RC_ASSERT(claims == 1);
      RC_ASSERT((new_token >> kTokenCounterBits) >= now.meta.epoch());
    }
    tokens[name] = std::max({tokens[name], device.last_token(), new_token});
  }
}

// Every request is granted, settled or still queued; exactly one of them, and once.
void check_requests(const State& was, const State& now, const Command& command, const Decision& decision) {
  std::set<std::string> settled;
  for (const Settled& s : decision.settled) {
    RC_ASSERT(settled.insert(s.request_id).second);
    RC_ASSERT(was.requests.contains(s.request_id));
    RC_ASSERT(!now.requests.contains(s.request_id));
    RC_ASSERT(s.reply.status().code() != command::CODE_QUEUED);
    const record::Request& request = was.requests.at(s.request_id);
    if (s.reply.status().code() == command::CODE_OK) {
      RC_ASSERT(s.reply.grants_size() == request.devices_size());
      for (const auto& grant : s.reply.grants()) {
        RC_ASSERT(holds(now.devices.at(grant.device()), request.start()));
        RC_ASSERT(now.devices.at(grant.device()).lease().token() == grant.token());
      }
    } else {
      RC_ASSERT(s.reply.grants_size() == 0);
    }
  }
  for (const auto& [id, request] : was.requests) {
    RC_ASSERT(now.requests.contains(id) != settled.contains(id));
    if (now.requests.contains(id)) RC_ASSERT(now.requests.at(id).seq() == request.seq());
  }
  for (const auto& [id, request] : now.requests) {
    if (was.requests.contains(id)) continue;
    RC_ASSERT(command.has_acquire());
    RC_ASSERT(command.acquire().request_id() == id);
    RC_ASSERT(decision.reply.status().code() == command::CODE_QUEUED);
  }
}

// Nobody overtakes, and nobody waits who could be granted.
void check_order(const State& was, const State& now, const Decision& decision) {
  for (const Settled& s : decision.settled) {
    if (s.reply.status().code() != command::CODE_OK) continue;
    // What it holds under another request already is taken from nobody.
    record::Request taken;
    for (const auto& grant : s.reply.grants()) {
      if (now.devices.at(grant.device()).lease().request_id() == s.request_id) taken.add_devices(grant.device());
    }
    for (const auto& [id, waiting] : now.requests) {
      if (before(waiting, was.requests.at(s.request_id)) && shares_a_device(waiting, taken))
        RC_ASSERT(!reachable(now, waiting));
    }
  }
  if (!now.meta.behind().empty()) return;
  for (const auto& [id, waiting] : now.requests) {
    const auto& request = waiting;  // clang 14 captures no structured binding
    const bool free_for_it = std::all_of(request.devices().begin(), request.devices().end(), [&](const auto& name) {
      const record::Device& device = now.devices.at(name);
      return holds(device, request.start()) || (grantable(now, device) && reaches(now, device, request.start()));
    });
    const bool blocked = std::any_of(now.requests.begin(), now.requests.end(), [&](const auto& other) {
      return before(other.second, request) && shares_a_device(other.second, request) && reachable(now, other.second);
    });
    RC_ASSERT(!free_for_it || blocked);
  }
}

bool stands(const State& state, const std::string& host, record::Standing standing) {
  const auto found = state.members.find(host);
  return found != state.members.end() && found->second.standing() == standing;
}

// Nobody gets in without a token that is good, a token lets one key in, and who left has nothing.
void check_members(const State& was, const State& now, const Command& command, std::uint64_t now_unix_s) {
  for (const auto& [id, member] : now.members) {
    if (stands(now, id, record::STANDING_JOINED) && !stands(was, id, record::STANDING_JOINED)) {
      if (command.has_found_cluster()) {
        RC_ASSERT(was.members.empty());
      } else {
        RC_ASSERT(command.has_join());
        const record::JoinToken& token = was.tokens.at(command.join().token_id());
        RC_ASSERT(token.host_id() == id);
        RC_ASSERT(token.secret_sha256() == command.join().secret_sha256());
        RC_ASSERT(token.redeemed_by().empty());
        RC_ASSERT(token.expires_unix_s() > now_unix_s);
      }
    }
    if (!stands(now, id, record::STANDING_REMOVED)) continue;
    RC_ASSERT(leased_devices_at(now, id).empty());
    const record::Host* host = find_host(now, id);
    if (host != nullptr) RC_ASSERT(host->gone());
  }
  RC_ASSERT(was.members.empty() || !now.members.empty());
  for (const auto& [id, token] : was.tokens) {
    const auto same = now.tokens.find(id);
    if (same == now.tokens.end() || token.redeemed_by().empty() || command.has_add_host()) continue;
    RC_ASSERT(same->second.redeemed_by() == token.redeemed_by());
  }
  for (const auto& [name, device] : now.devices) {
    const auto before = was.devices.find(name);
    const bool had = before != was.devices.end() && before->second.has_lease() && device.has_lease() &&
                     before->second.lease().token() == device.lease().token();
    if (had || !device.has_lease() || device.lease().phase() != record::PHASE_GRANTED) continue;
    for (const std::string& host : {device.lease().start().host_id(), device.lease().instance().host_id()}) {
      RC_ASSERT(!now.hosts.at(host).draining());
      RC_ASSERT(now.members.empty() || stands(now, host, record::STANDING_JOINED));
    }
  }
}

// The store, as the coordinator would keep it.
using Store = std::map<std::string, std::string>;

void write(Store& store, const Decision& decision) {
  std::set<std::string> keys;
  for (const Change& change : decision.changes) {
    RC_ASSERT(keys.insert(change.key).second);
    if (change.value) {
      store[change.key] = *change.value;
    } else {
      store.erase(change.key);
    }
  }
}

Store all_of(const State& state) {
  Store store;
  for (auto& [key, value] : entries_of(state)) store[key] = value;
  return store;
}

State loaded(const Store& store) {
  auto state = load({store.begin(), store.end()});
  if (!state) RC_FAIL(state.error().message);
  return *state;
}

std::string trace_of(const Decision& decision) {
  std::string out = decision.reply.SerializeAsString();
  for (const Change& change : decision.changes) out += "|" + change.key + "=" + change.value.value_or("(deleted)");
  for (const Settled& s : decision.settled) out += "|" + s.request_id + ":" + s.reply.SerializeAsString();
  return out;
}

void any_sequence_keeps_the_record_right() {
  const bool working = *rc::gen::inRange(0, 8) != 0;
  const auto ops = *any_ops();
  Core core = beginning(working);
  Store store = all_of(core.state());
  Tokens tokens;
  std::uint64_t now_unix_s = 1'000;
  int grants = 0;
  int queued = 0;
  for (const Op& op : ops) {
    const Command command = command_of(core.state(), op);
    const State was = core.state();
    now_unix_s += op.c;
    const Decision decision = core.apply(command, Context{now_unix_s});
    const State& now = core.state();
    write(store, decision);
    RC_ASSERT(store == all_of(now));  // every mutation is in the changes
    if (is_refusal(decision.reply.status().code())) {
      RC_ASSERT(decision.changes.empty());
      RC_ASSERT(decision.events.empty());
      RC_ASSERT(decision.settled.empty());
      RC_ASSERT(all_of(was) == all_of(now));
    }
    check_leases(was, now, command, tokens);
    check_requests(was, now, command, decision);
    check_order(was, now, decision);
    check_members(was, now, command, now_unix_s);
    for (const Settled& settled : decision.settled) queued += settled.reply.grants_size();
    if (command.has_acquire() && !is_refusal(decision.reply.status().code())) {
      const std::string first = decision.reply.SerializeAsString();
      const Decision again = core.apply(command, Context{now_unix_s});
      RC_ASSERT(again.changes.empty());
      RC_ASSERT(again.reply.grants_size() == decision.reply.grants_size());
      RC_ASSERT(again.reply.SerializeAsString() == first);
      grants += decision.reply.grants_size();
    }
  }
  RC_CLASSIFY(grants > 0, "granted");
  RC_CLASSIFY(grants > 5, "granted often");
  RC_CLASSIFY(queued > 0, "from the queue");
  RC_CLASSIFY(core.state().members.size() > 1, "several members");
  RC_CLASSIFY(std::any_of(core.state().members.begin(), core.state().members.end(),
                          [](const auto& m) { return m.second.standing() == record::STANDING_REMOVED; }),
              "removed");
}

void a_core_rebuilt_from_the_store_continues_identically() {
  const bool working = *rc::gen::inRange(0, 8) != 0;
  const auto ops = *any_ops();
  const auto cut = *rc::gen::inRange<std::size_t>(0, ops.size() + 1);
  Core core = beginning(working);
  Store store = all_of(core.state());
  std::optional<Core> rebuilt;
  std::uint64_t now_unix_s = 1'000;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    if (i == cut) rebuilt.emplace(loaded(store));
    const Command command = command_of(core.state(), ops[i]);
    now_unix_s += ops[i].c;
    const Decision decision = core.apply(command, Context{now_unix_s});
    write(store, decision);
    if (!rebuilt) continue;
    RC_ASSERT(trace_of(rebuilt->apply(command, Context{now_unix_s})) == trace_of(decision));
  }
  if (rebuilt) RC_ASSERT(all_of(rebuilt->state()) == all_of(core.state()));
  RC_ASSERT(store == all_of(loaded(store)));
}

START_TEST(records) {
  ck_assert(rc::check("any sequence of commands keeps the record right", any_sequence_keeps_the_record_right));
}
END_TEST

START_TEST(rebuilding) {
  ck_assert(rc::check("a core rebuilt from the store continues identically",
                      a_core_rebuilt_from_the_store_continues_identically));
}
END_TEST

}  // namespace

int main() {
  setenv("RC_PARAMS", "max_success=400", 0);
  return run_suite("properties", {records, rebuilding}, 300);
}
