#include "tests/unit/cluster/cluster_world.h"

#include <glib.h>

#include <sstream>

#include "common/boottime.h"
#include "common/main_loop.h"
#include "tests/unit/common/check_run.h"

namespace usblease::cluster_test {
namespace {

constexpr std::uint64_t kBoundNs = 20ULL * 1'000'000'000;

std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

}  // namespace

TestHost::TestHost(MemoryNet& net, Database& database, const std::string& id, bool candidate, lease::Timing timing) {
  if (candidate) store_ = std::make_unique<MemoryStore>(database, id);
  cluster::NodeEvents events;
  events.router.ready = [this, id] {
    ++ready;
    log.emplace_back("ready");
    if (registers) router().submit(register_host(id), [](const command::Reply& /*it is in the record*/) {});
  };
  events.router.away = [this] { log.emplace_back("away"); };
  events.router.view = [this](const peer::HostView& pushed) {
    view = pushed;
    log.emplace_back("view");
  };
  events.router.settled = [this](const std::string& request_id, const command::Reply& reply) {
    settled[request_id] = reply;
  };
  node_ = std::make_unique<cluster::Node>(store_.get(), cluster::CoordinatorOptions{id, boot_of(id), "cluster", timing},
                                          events);
  auto transport_events = node_->transport_events();
  transport_events.join = [](const std::string& /*payload*/, const std::function<void(std::string)>& /*answer*/) {};
  transport_ = std::make_unique<MemoryTransport>(net, id, std::move(transport_events));
  cluster::PeerServiceHooks hooks;
  hooks.forwarded = [this](cluster::ForwardedCall call) {
    forwarded.push_back(std::move(call));
    return [this] { ++clients_gone; };
  };
  node_->use(*transport_, std::move(hooks));
}

TestHost::~TestHost() { transport_.reset(); }

World::World(const std::string& candidates, const std::string& plain, lease::Timing timing) : timing_(timing) {
  members_.cluster_id = "cluster";
  for (const std::string& id : words(candidates)) members_.hosts.push_back({id, {id + ":1"}, true, ""});
  for (const std::string& id : words(plain)) members_.hosts.push_back({id, {id + ":1"}, false, ""});
  for (const cluster::Member& member : std::vector(members_.hosts)) add(member.host_id, member.candidate);
}

TestHost& World::add(const std::string& id, bool candidate) {
  hosts_[id] = std::make_unique<TestHost>(net, database, id, candidate, timing_);
  hosts_[id]->node().set_members(members_);
  hosts_[id]->node().start();
  return *hosts_[id];
}

void World::until(const std::function<bool()>& done) {
  const std::uint64_t end_ns = boottime_now_ns() + kBoundNs;
  SourceHandle bound = run_after(kBoundNs, [] {});
  while (!done()) {
    if (boottime_now_ns() >= end_ns) ck_abort_msg("did not happen within 20 s");
    g_main_context_iteration(nullptr, TRUE);
  }
}

void World::run_for_ms(std::uint64_t ms) {
  bool over = false;
  const SourceHandle timer = run_after(ms * 1'000'000, [&] { over = true; });
  while (!over) g_main_context_iteration(nullptr, TRUE);
}

std::string World::coordinator() {
  std::string found;
  for (const auto& [id, host] : hosts_) {
    if (!host->is_coordinator()) continue;
    if (!found.empty()) return "";
    found = id;
  }
  return found;
}

std::string World::settle() {
  until([&] {
    const std::string now = coordinator();
    if (now.empty()) return false;
    for (const auto& [id, host] : hosts_) {
      if (!host->router().ready() || host->router().coordinator().host_id() != now) return false;
    }
    return true;
  });
  return coordinator();
}

std::string World::any_other(const std::string& than) {
  for (const auto& [id, host] : hosts_) {
    if (id != than && host->node().coordinator() != nullptr) return id;
  }
  ck_abort_msg("no other candidate");
}

command::Reply World::submit(const std::string& host, command::Command command) {
  std::optional<command::Reply> got;
  TestHost& there = *hosts_.at(host);
  there.router().submit(std::move(command), [&](const command::Reply& reply) {
    got = reply;
    there.log.emplace_back("reply");
  });
  until([&] { return got.has_value(); });
  return *got;
}

peer::RenewalAnswer World::renew(const std::string& host) {
  peer::Renewal renewal;
  renewal.set_host_id(host);
  renewal.set_boot_id(boot_of(host));
  renewal.set_machine_uuid("machine-" + host);
  renewal.set_seq(7);
  std::optional<peer::RenewalAnswer> got;
  hosts_.at(host)->router().renew(renewal, [&](const peer::RenewalAnswer& answer) { got = answer; });
  until([&] { return got.has_value(); });
  return *got;
}

void World::plug(const std::string& host, const std::string& device) {
  hosts_.at(host)->registers = true;
  ck_assert_int_eq(submit(host, register_host(host)).status().code(), command::CODE_OK);
  ck_assert_int_eq(submit(host, report_device(host, device)).status().code(), command::CODE_OK);
}

// Distinct for the one-letter ids of tests.
std::string boot_of(const std::string& host) {
  return "00000000-0000-4000-8000-000000000" + std::to_string(100 + static_cast<unsigned char>(host[0]));
}

command::Command register_host(const std::string& host) {
  command::Command command;
  record::Host& self = *command.mutable_register_host()->mutable_host();
  self.set_id(host);
  self.set_name(host);
  self.set_boot_id(boot_of(host));
  self.set_machine_uuid("machine-" + host);
  self.add_rungs(record::RUNG_ADMISSION);
  self.add_rungs(record::RUNG_RELAY);
  command.mutable_register_host()->set_has_floors(true);
  return command;
}

command::Command report_device(const std::string& host, const std::string& device) {
  command::Command command;
  command::ReportDevice& c = *command.mutable_report_device();
  c.set_device(device);
  record::Presence& presence = *c.mutable_presence();
  presence.mutable_instance()->set_host_id(host);
  presence.mutable_instance()->set_boot_id(boot_of(host));
  presence.mutable_instance()->set_counter(1);
  presence.set_present(true);
  presence.mutable_identity()->set_kind(record::DEVICE_KIND_ENDPOINT);
  presence.mutable_identity()->set_address("unix:/run/" + device);
  return command;
}

command::Command acquire(const std::string& host, const std::string& request, const std::string& device,
                         std::uint32_t wait_ms, const std::string& nonce) {
  command::Command command;
  command::Acquire& c = *command.mutable_acquire();
  c.set_request_id(request);
  c.mutable_start()->set_guest_uuid("11111111-2222-4333-8444-555555555555");
  c.mutable_start()->set_nonce(nonce);
  c.mutable_start()->set_host_id(host);
  c.mutable_start()->set_boot_id(boot_of(host));
  c.mutable_start()->set_domain_id(-1);
  c.set_guest_name("guest-" + request);
  c.add_devices(device);
  c.set_wait_ms(wait_ms);
  c.set_principal("root@" + host);
  return command;
}

command::Command release(const command::Command& acquired) {
  command::Command command;
  *command.mutable_release()->mutable_start() = acquired.acquire().start();
  *command.mutable_release()->mutable_devices() = acquired.acquire().devices();
  command.mutable_release()->set_reason("test");
  return command;
}

command::Command confirm_fenced(const std::string& home, const std::string& device, std::uint64_t token) {
  command::Command command;
  command::ConfirmFenced& c = *command.mutable_confirm_fenced();
  c.set_device(device);
  c.mutable_instance()->set_host_id(home);
  c.mutable_instance()->set_boot_id(boot_of(home));
  c.mutable_instance()->set_counter(1);
  c.set_token(token);
  c.set_how("test");
  return command;
}

}  // namespace usblease::cluster_test
