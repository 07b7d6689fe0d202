#include "daemon/host/session.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/mutant.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kRetryNs = 500 * lease::kNsPerMs;

}  // namespace

Session::Session(cluster::CoordinatorLink& link, HomeFile& home_file, record::Host self, lease::Timing timing,
                 SessionEvents events)
    : link_(link),
      home_file_(home_file),
      self_(std::move(self)),
      timing_(timing, self_.id(), self_.boot_id(), self_.machine_uuid()),
      renewal_ns_(timing.renewal_ms * lease::kNsPerMs),
      events_(std::move(events)) {}

void Session::start() {
  register_host();
  renew();
}

// Anew, whatever is under way: that names the floors of when it was said, and another coordinator may get to hear it.
void Session::restart() {
  registered_ = false;
  registering_ = false;
  ++registration_;
  register_host();
}

void Session::set_rungs(const std::vector<record::Rung>& rungs) {
  if (std::equal(rungs.begin(), rungs.end(), self_.rungs().begin(), self_.rungs().end())) return;
  self_.clear_rungs();
  for (const record::Rung rung : rungs) self_.add_rungs(rung);
  stale_ = true;  // a registration that is under way says the old ones
  if (registered_) restart();
}

void Session::register_host() {
  if (registering_) return;
  registering_ = true;
  stale_ = false;
  command::Command command;
  command::RegisterHost& c = *command.mutable_register_host();
  *c.mutable_host() = self_;
  c.set_has_floors(home_file_.has_floors());
  for (const home::Floor& floor : home_file_.floors()) {
    command::Floor& out = *c.add_floors();
    out.set_device(floor.device());
    out.set_armed(floor.armed());
    out.set_fenced(floor.fenced());
    out.set_instance(floor.instance());
    out.set_boot_id(floor.boot_id());
  }
  link_.submit(std::move(command),
               [this, alive = std::weak_ptr(alive_), registration = registration_](const command::Reply& reply) {
                 if (alive.expired() || registration != registration_) return;
                 registering_ = false;
                 on_registered(reply);
               });
}

void Session::on_registered(const command::Reply& reply) {
  if (reply.status().code() != command::CODE_OK) {
    log::warning("cannot register with the coordinator", {{"ERROR", reply.status().message()}});
    retry_ = run_after(kRetryNs, [this] { register_host(); });
    return;
  }
  const auto done = [this, alive = std::weak_ptr(alive_), registration = registration_](const Result<void>& stored) {
    if (alive.expired() || registration != registration_) return;
    if (!stored) {
      log::error("cannot keep the floors", {{"ERROR", stored.error().message}});
      retry_ = run_after(kRetryNs, [this] { register_host(); });
      return;
    }
    registered_ = true;
    renew();
    if (events_.registered) events_.registered();
    if (stale_) restart();
  };
  if (home_file_.has_floors()) return done({});
  std::vector<HomeFile::SuppliedFloor> floors;
  for (const command::Floor& floor : reply.floors()) {
    floors.push_back({floor.device(), floor.fenced(), floor.armed(), floor.instance(), floor.boot_id()});
  }
  home_file_.supply_floors(std::move(floors), done);
}

void Session::renew() {
  // t0 is read inside, before the message leaves.
  link_.renew(timing_.renew(boottime_now_ns()),
              [this, alive = std::weak_ptr(alive_)](const peer::RenewalAnswer& answer) {
                if (!alive.expired()) on_answer(answer);
              });
  next_renewal_ = run_after(renewal_ns_, [this] { renew(); });
}

void Session::on_answer(const peer::RenewalAnswer& answer) {
  const lease::HostSession::Orders orders = timing_.answer(answer);
  const std::uint64_t late_ns = MUTANT(deadline_from_answer) ? renewal_ns_ * 2 : 0;
  for (const auto& [lease, deadline_ns] : orders.deadlines) events_.deadline(lease, deadline_ns + late_ns);
  for (const auto& lease : orders.fence) events_.fence(lease);
  if (answer.status().code() == command::CODE_OK) return;
  log::debug("a renewal was not answered", {{"ERROR", answer.status().message()}});
  // The coordinator does not know this session: it counted the host as gone, or its store is another one.
  if (answer.status().code() == command::CODE_NOT_FOUND && registered_) restart();
}

}  // namespace usblease::host
