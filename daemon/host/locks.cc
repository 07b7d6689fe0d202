#include "daemon/host/locks.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/boottime.h"
#include "common/log.h"
#include "daemon/host/explain.h"

namespace usblease::host {

std::uint64_t Locks::lock(const command::Acquire& request, LockClient client) {
  const std::string& id = request.request_id();
  const std::uint64_t number = next_number_++;
  Holder& holder = holders_[id];
  holder.client = std::move(client);
  holder.number = number;
  if (holder.lost) {
    post([ended = holder.client.ended] { ended(command::CODE_UNAVAILABLE, "the lock was lost"); });
    return number;
  }
  if (holder.armed) {
    post([this, alive = std::weak_ptr(alive_), id, number] {
      if (alive.expired()) return;
      const auto found = holders_.find(id);
      if (found != holders_.end() && found->second.number == number) tell_deadline(found->second);
    });
    return number;
  }
  if (holder.token != 0) return number;  // it is just being written down
  holder.request = request;
  const auto waiting = [this, id](const command::Reply& reply) {
    const auto found = holders_.find(id);
    if (found != holders_.end()) found->second.client.waiting(reply);
  };
  context_.acquisitions.acquire(request, waiting, [this, id](const command::Reply& reply) { granted(id, reply); });
  return number;
}

void Locks::granted(const std::string& request_id, const command::Reply& reply) {
  const auto found = holders_.find(request_id);
  if (found == holders_.end()) return;
  Holder& holder = found->second;
  if (reply.status().code() != command::CODE_OK || reply.grants().empty()) {
    const Holder refused = std::move(holder);
    holders_.erase(found);
    return refused.client.ended(reply.status().code(), explain_lock(reply));
  }
  const std::string& name = holder.request.devices(0);
  holder.token = reply.grants(0).token();
  holder.instance = reply.grants(0).instance();
  unclaimed_.erase(name);
  // On disk before anybody knows it: a store that goes back in time is found out by what hosts remember.
  context_.home_file.record_armed(
      name, holder.token, holder.instance.counter(), holder.instance.boot_id(),
      [this, alive = std::weak_ptr(alive_), request_id, token = holder.token](const Result<void>& stored) {
        if (!alive.expired()) recorded(request_id, token, stored);
      });
}

void Locks::recorded(const std::string& request_id, std::uint64_t token, const Result<void>& stored) {
  const auto found = holders_.find(request_id);
  // Abandoned meanwhile, and released.
  if (found == holders_.end() || found->second.token != token) return;
  Holder& holder = found->second;
  const std::string& name = holder.request.devices(0);
  if (!stored) {
    release(holder, "this host cannot write down what it holds");
    return lose(request_id, command::CODE_UNAVAILABLE,
                "the lock was granted, but this host cannot write that down: " + stored.error().message);
  }
  // While that was written the lease may have ended. What the coordinator records comes here before every renewal that
  // is answered after it; so where the record still has this lease, the deadline that is computed here is of a renewal
  // that was sent before the lease could end.
  const auto record = records_.find(name);
  const bool current = record != records_.end() && record->second.lease().token() == token &&
                       record->second.lease().phase() != record::PHASE_FENCING;
  const auto dead = dead_through_.find(name);
  if (!current || (dead != dead_through_.end() && token <= dead->second))
    return lose(request_id, command::CODE_UNAVAILABLE, "the lock was taken away before it could be used");
  holder.armed = true;
  context_.session.arm({name, token}, context_.ttl_ms);
  tell_deadline(holder);
}

void Locks::tell_deadline(const Holder& holder) {
  const std::uint64_t deadline_ns = context_.session.deadline({holder.request.devices(0), holder.token});
  // Without an answered renewal there is no right yet; the next answer brings it.
  if (deadline_ns > boottime_now_ns()) holder.client.held(holder.token, deadline_ns);
}

void Locks::set_deadline(const lease::DeviceToken& lock, std::uint64_t deadline_ns) {
  const Holder* holder = holder_of(lock);
  if (holder != nullptr && holder->armed && !holder->lost) holder->client.held(holder->token, deadline_ns);
}

Locks::Holder* Locks::holder_of(const lease::DeviceToken& lock) {
  for (auto& [id, holder] : holders_) {
    if (holder.token == lock.second && holder.request.devices(0) == lock.first) return &holder;
  }
  return nullptr;
}

// --- How it ends -------------------------------------------------------------------------------------------

void Locks::fence(const lease::DeviceToken& lock) {
  std::uint64_t& dead = dead_through_[lock.first];
  dead = std::max(dead, lock.second);
  context_.session.disarm(lock);
  Holder* holder = holder_of(lock);
  // Of a token that nobody here holds nothing can be said; the coordinator waits until it has expired.
  if (holder == nullptr || !holder->armed || std::exchange(holder->lost, true)) return;
  const auto record = records_.find(lock.first);
  const std::string reason =
      record != records_.end() && record->second.has_lease() && record->second.lease().token() == lock.second
          ? record->second.lease().end_reason()
          : "the cluster does not know this lease any more";
  holder->client.ended(command::CODE_UNAVAILABLE, "the lock was lost: " + reason);
}

void Locks::lose(const std::string& request_id, command::Code code, const std::string& why) {
  auto lost = holders_.extract(request_id);
  if (!lost.empty()) lost.mapped().client.ended(code, why);
}

void Locks::unlock(const std::string& request_id, std::function<void(Result<void>)> done) {
  auto ended = holders_.extract(request_id);
  if (ended.empty() || ended.mapped().token == 0) {
    if (!ended.empty()) context_.acquisitions.abandon(request_id, "the client gave it up");
    return done(fail(ErrorCode::kNotFound, "this host does not hold that lock under that request"));
  }
  Holder& holder = ended.mapped();
  const std::string name = holder.request.devices(0);
  context_.session.disarm({name, holder.token});
  std::uint64_t& dead = dead_through_[name];
  dead = std::max(dead, holder.token);
  holder.client.ended(command::CODE_OK, "");
  command::Command command;
  command::ConfirmFenced& c = *command.mutable_confirm_fenced();
  c.set_device(name);
  c.set_token(holder.token);
  *c.mutable_instance() = holder.instance;
  c.set_how("everything that ran under it has ended");
  context_.home_file.record_fenced(
      name, holder.token,
      [this, alive = std::weak_ptr(alive_), holder, command, done = std::move(done)](const Result<void>& stored) {
        if (alive.expired()) return;
        if (!stored) {
          release(holder, "released");
          return done(tl::unexpected(stored.error()));
        }
        context_.link.submit(command, [this, alive, holder, done](const command::Reply& reply) {
          if (alive.expired()) return;
          if (reply.status().code() == command::CODE_OK) return done({});
          release(holder, "released");
          done(fail(ErrorCode::kUnavailable, reply.status().message()));
        });
      });
}

void Locks::abandon(const std::string& request_id, std::uint64_t client_number) {
  const auto found = holders_.find(request_id);
  if (found == holders_.end() || found->second.number != client_number) return;
  const Holder holder = std::move(found->second);
  holders_.erase(found);
  if (holder.token == 0) return context_.acquisitions.abandon(request_id, "the client went away");
  context_.session.disarm({holder.request.devices(0), holder.token});
  release(holder, "the client went away");
}

void Locks::release(const Holder& holder, const std::string& why) {
  command::Command command;
  command::Release& c = *command.mutable_release();
  *c.mutable_start() = holder.request.start();
  *c.mutable_devices() = holder.request.devices();
  c.set_reason(why);
  c.set_principal(holder.request.principal());
  context_.give_back(std::move(command));
}

// --- What the record says ------------------------------------------------------------------------------------

void Locks::on_record(const record::Device& lock) {
  const std::string& name = lock.name();
  const record::Host& self = context_.session.self();
  const bool here = lock.has_lease() && lock.lease().instance().host_id() == self.id() &&
                    lock.lease().instance().boot_id() == self.boot_id();
  // Whatever else this host thought to hold of it is over; who was told already needs to say nothing more.
  std::vector<std::uint64_t> over;
  for (const auto& [id, holder] : holders_) {
    const bool current = here && lock.lease().token() == holder.token;
    if (holder.request.devices(0) == name && holder.armed && !current) over.push_back(holder.token);
  }
  for (const std::uint64_t token : over) fence({name, token});
  std::erase_if(holders_, [&](const auto& entry) {
    const Holder& holder = entry.second;
    return holder.request.devices(0) == name && holder.lost && !(here && lock.lease().token() == holder.token);
  });
  if (!here) {
    records_.erase(name);
    unclaimed_.erase(name);
    return;
  }
  records_[name] = lock;
  if (lock.lease().phase() == record::PHASE_FENCING) {
    unclaimed_.erase(name);
    return fence({name, lock.lease().token()});
  }
  // Whoever waits under that request is about to be told.
  const bool claimed =
      holder_of({name, lock.lease().token()}) != nullptr || holders_.contains(lock.lease().request_id());
  if (claimed || unclaimed_.contains(name)) return;
  unclaimed_[name] = run_after(context_.ttl_ms * lease::kNsPerMs, [this, name, token = lock.lease().token()] {
    const SourceHandle spent = std::move(unclaimed_.at(name));
    unclaimed_.erase(name);
    if (holder_of({name, token}) == nullptr) release_unclaimed(name);
  });
}

void Locks::release_unclaimed(const std::string& lock) {
  const auto record = records_.find(lock);
  if (record == records_.end()) return;
  log::info("nobody claims this lock any more", {{"DEVICE", lock}});
  Holder holder;
  *holder.request.mutable_start() = record->second.lease().start();
  holder.request.add_devices(lock);
  release(holder, "its holder did not come back");
}

}  // namespace usblease::host
