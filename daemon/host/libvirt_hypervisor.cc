#include "daemon/host/libvirt_hypervisor.h"

#include <atomic>
#include <map>
#include <set>
#include <utility>

#include "common/log.h"
#include "common/main_loop.h"
#include "common/text.h"
#include "daemon/host/libvirt_link.h"
#include "daemon/host/libvirt_session.h"
#include "daemon/host/work_pool.h"

namespace usblease::host {
namespace {

// A call on its way. On the main loop, but for `given_up`.
class Ticket {
 public:
  Ticket() = default;
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  virtual ~Ticket() = default;
  virtual void drop() = 0;
  [[nodiscard]] bool given_up() const { return given_up_; }

 protected:
  std::atomic<bool> given_up_ = false;
};

template <typename T>
class TicketOf : public Ticket {
 public:
  explicit TicketOf(Hypervisor::Done<T> done) : done_(std::move(done)) {}
  void bound(SourceHandle timer) { timer_ = std::move(timer); }
  // Calls back once; what comes later is dropped. The callback may destroy the hypervisor.
  void finish(Result<T> result) {
    auto done = std::exchange(done_, nullptr);
    drop();
    if (done) done(std::move(result));
  }
  void drop() override {
    given_up_ = true;
    timer_.cancel();
    done_ = nullptr;  // what it holds must not die on a worker thread
  }

 private:
  Hypervisor::Done<T> done_;
  SourceHandle timer_;
};

class LibvirtHypervisor final : public Hypervisor {
 public:
  explicit LibvirtHypervisor(LibvirtOptions options) : options_(std::move(options)) {}
  ~LibvirtHypervisor() override;

  void start(HypervisorEvents events) override;
  void find_guest(std::string name_or_uuid, Done<Guest> done) override;
  void list_guests(Done<std::vector<Guest>> done) override;
  void attach_endpoint(std::string guest_uuid, std::string device, std::string socket_path, Done<void> done) override;
  void attach_usb(std::string guest_uuid, std::string device, UsbAddress address, Done<void> done) override;
  void detach_usb(std::string guest_uuid, UsbAddress address, Done<void> done) override;
  void destroy(std::string guest_uuid, Done<void> done) override;
  void detach(std::string guest_uuid, std::string device, Done<void> done) override;
  void assign(std::string guest, Assignment assignment, bool remove, Done<bool> done) override;
  [[nodiscard]] bool is_connected() const override { return connected_; }
  [[nodiscard]] std::string describe() const override { return description_; }

 private:
  // What the threads share. Tasks may outlive the hypervisor by a little, with this.
  struct Shared {
    std::shared_ptr<LibvirtLink> link;
    // Runs on the main loop, unless the hypervisor is gone by then.
    std::function<void(std::function<void(LibvirtHypervisor&)>)> tell;
    // The guests that run, as the main loop was told last, and of which connection. Only in the event lane.
    std::uint64_t known_generation = 0;
    std::map<std::string, int> known_domain_ids;  // by UUID
  };
  using SharedPtr = std::shared_ptr<Shared>;
  using EventWork = std::function<void(Shared&)>;

  static LinkEvents link_events(const std::weak_ptr<Shared>& shared, const std::weak_ptr<WorkPool>& pool);
  static void list_all(Shared& shared, std::uint64_t generation);
  static void look_at(Shared& shared, std::uint64_t generation, const std::string& uuid);

  template <typename T>
  void call(Lane lane, const std::string& key, const std::string& what, std::function<Result<T>(LibvirtSession&)> work,
            Done<T> done);
  void up(std::vector<Guest> guests, std::string description);
  void down(const std::string& why);

  const LibvirtOptions options_;
  HypervisorEvents events_;
  bool connected_ = false;
  std::string description_ = "not connected yet";
  std::set<std::shared_ptr<Ticket>> tickets_;
  std::shared_ptr<LibvirtHypervisor*> self_;  // what posted calls hold weakly
  SharedPtr shared_;
  std::shared_ptr<WorkPool> pool_;
};

void LibvirtHypervisor::start(HypervisorEvents events) {
  events_ = std::move(events);
  self_ = std::make_shared<LibvirtHypervisor*>(this);
  shared_ = std::make_shared<Shared>();
  pool_ = std::make_shared<WorkPool>();
  shared_->tell = [weak = std::weak_ptr<LibvirtHypervisor*>(self_)](std::function<void(LibvirtHypervisor&)> run) {
    post([weak, run = std::move(run)] {
      if (const auto self = weak.lock()) run(**self);
    });
  };
  shared_->link = LibvirtLink::make(options_.uri, options_.run_dir, link_events(shared_, pool_));
  shared_->link->start();
}

LibvirtHypervisor::~LibvirtHypervisor() {
  self_.reset();
  for (const auto& ticket : tickets_) ticket->drop();
  if (!shared_) return;
  shared_->link->request_stop();
  pool_->stop();
  shared_->link->stop();
}

// What libvirt and the link say becomes work in the event lane, in order.
LinkEvents LibvirtHypervisor::link_events(const std::weak_ptr<Shared>& weak_shared,
                                          const std::weak_ptr<WorkPool>& weak_pool) {
  const auto submit = [weak_shared, weak_pool](std::uint64_t generation, EventWork work) {
    const auto shared = weak_shared.lock();
    const auto pool = weak_pool.lock();
    if (!shared || !pool) return;
    // Bounded: who cannot follow starts again with the whole list.
    if (!pool->submit(Lane::kEvent, "", [shared, work = std::move(work)] { work(*shared); })) {
      shared->link->give_up(generation, "more events than could be looked at");
    }
  };
  LinkEvents events;
  events.up = [submit](std::uint64_t generation) {
    submit(generation, [generation](Shared& shared) { list_all(shared, generation); });
  };
  // In the lane too: else a list that was still read from the old connection could come after it.
  events.down = [submit](const std::string& why) {
    submit(0, [why](Shared& shared) { shared.tell([why](LibvirtHypervisor& self) { self.down(why); }); });
  };
  events.guest_changed = [submit](std::uint64_t generation, const std::string& uuid) {
    submit(generation, [=](Shared& shared) { look_at(shared, generation, uuid); });
  };
  events.device_removed = [submit](std::uint64_t generation, const std::string& uuid, const std::string& device) {
    submit(generation, [=](Shared& shared) {
      if (shared.known_generation != generation) return;
      shared.tell([=](LibvirtHypervisor& self) {
        if (self.events_.device_removed) self.events_.device_removed(uuid, device);
      });
    });
  };
  return events;
}

void LibvirtHypervisor::list_all(Shared& shared, std::uint64_t generation) {
  const auto session = shared.link->session(generation);
  if (!session) return;
  auto guests = session->list_guests();
  if (!guests) return shared.link->give_up(generation, guests.error().message);
  shared.known_generation = generation;
  shared.known_domain_ids.clear();
  for (const auto& guest : *guests) {
    if (guest.running) shared.known_domain_ids[guest.uuid] = guest.domain_id;
  }
  shared.link->settle();
  shared.tell([guests = std::move(*guests), description = session->description()](LibvirtHypervisor& self) {
    self.up(guests, description);
  });
}

void LibvirtHypervisor::look_at(Shared& shared, std::uint64_t generation, const std::string& uuid) {
  const auto session = shared.link->session(generation);
  if (!session || shared.known_generation != generation) return;
  const auto guest = session->find_guest(uuid);
  if (!guest && guest.error().code != ErrorCode::kNotFound) {
    return shared.link->give_up(generation, guest.error().message);
  }
  const auto known = shared.known_domain_ids.find(uuid);
  const int before = known != shared.known_domain_ids.end() ? known->second : -1;
  const int now = guest && guest->running ? guest->domain_id : -1;
  if (before == now) return;
  shared.known_domain_ids.erase(uuid);
  if (before != -1) {
    shared.tell([uuid](LibvirtHypervisor& self) {
      if (self.events_.guest_stopped) self.events_.guest_stopped(uuid);
    });
  }
  if (now == -1) return;
  shared.known_domain_ids[uuid] = now;
  shared.tell([started = *guest](LibvirtHypervisor& self) {
    if (self.events_.guest_started) self.events_.guest_started(started);
  });
}

void LibvirtHypervisor::up(std::vector<Guest> guests, std::string description) {
  connected_ = true;
  description_ = std::move(description);
  log::info("connected to libvirt: " + description_);
  if (events_.connected) events_.connected(std::move(guests));
}

void LibvirtHypervisor::down(const std::string& why) {
  connected_ = false;
  description_ = why;
  log::warning("libvirt is away; trying again until it is back", {{"ERROR", why}});
  if (events_.disconnected) events_.disconnected(why);
}

// Runs `work` in the lane with the present connection, and `done` on the main loop. `what` is for messages.
template <typename T>
void LibvirtHypervisor::call(Lane lane, const std::string& key, const std::string& what,
                             std::function<Result<T>(LibvirtSession&)> work, Done<T> done) {
  if (!self_) {
    post([done = std::move(done)] { done(fail(ErrorCode::kUnavailable, "libvirt: not started")); });
    return;
  }
  const auto ticket = std::make_shared<TicketOf<T>>(std::move(done));
  tickets_.insert(ticket);
  const auto finish = [ticket](Result<T> result) {
    return [ticket, result = std::move(result)](LibvirtHypervisor& self) {
      self.tickets_.erase(ticket);
      ticket->finish(result);
    };
  };
  if (!connected_) {
    return shared_->tell(finish(fail(ErrorCode::kUnavailable, "libvirt is away: " + description_)));
  }
  ticket->bound(run_after(kCallTimeoutMs * 1'000'000ULL, [this, finish, what] {
    finish(fail(ErrorCode::kTimedOut, what + ": libvirt has not answered in " + std::to_string(kCallTimeoutMs / 1000) +
                                          " s; see what virsh says of the guest"))(*this);
  }));
  const bool queued = pool_->submit(lane, key, [shared = shared_, ticket, finish, work = std::move(work)] {
    if (ticket->given_up()) return;
    auto session = shared->link->borrow();
    auto result = session ? work(**session) : Result<T>(tl::unexpected(session.error()));
    if (session) shared->link->give_back(std::move(*session));
    shared->tell(finish(std::move(result)));
  });
  if (!queued) shared_->tell(finish(fail(ErrorCode::kUnavailable, what + ": too many calls to libvirt wait")));
}

void LibvirtHypervisor::find_guest(std::string name_or_uuid, Done<Guest> done) {
  const std::string what = "cannot look up guest " + escape_text(name_or_uuid.substr(0, 255));
  call<Guest>(
      Lane::kQuery, "find " + name_or_uuid, what,
      [name_or_uuid](LibvirtSession& session) { return session.find_guest(name_or_uuid); }, std::move(done));
}

void LibvirtHypervisor::list_guests(Done<std::vector<Guest>> done) {
  call<std::vector<Guest>>(
      Lane::kQuery, "list", "cannot list the guests", [](LibvirtSession& session) { return session.list_guests(); },
      std::move(done));
}

void LibvirtHypervisor::attach_endpoint(std::string guest_uuid, std::string device, std::string socket_path,
                                        Done<void> done) {
  call<void>(
      Lane::kChange, guest_uuid, "cannot attach " + device + " to guest " + guest_uuid,
      [=](LibvirtSession& session) { return session.attach_endpoint(guest_uuid, device, socket_path); },
      std::move(done));
}

void LibvirtHypervisor::attach_usb(std::string guest_uuid, std::string device, UsbAddress address, Done<void> done) {
  call<void>(
      Lane::kChange, guest_uuid, "cannot attach " + device + " to guest " + guest_uuid,
      [=](LibvirtSession& session) { return session.attach_usb(guest_uuid, device, address); }, std::move(done));
}

void LibvirtHypervisor::detach_usb(std::string guest_uuid, UsbAddress address, Done<void> done) {
  call<void>(
      Lane::kChange, guest_uuid, "cannot detach a USB device from guest " + guest_uuid,
      [=](LibvirtSession& session) { return session.detach_usb(guest_uuid, address); }, std::move(done));
}

// Not behind other calls on the guest: one of them may be what hangs.
void LibvirtHypervisor::destroy(std::string guest_uuid, Done<void> done) {
  call<void>(
      Lane::kChange, "destroy " + guest_uuid, "cannot destroy guest " + guest_uuid,
      [=](LibvirtSession& session) { return session.destroy(guest_uuid); }, std::move(done));
}

void LibvirtHypervisor::detach(std::string guest_uuid, std::string device, Done<void> done) {
  call<void>(
      Lane::kChange, guest_uuid, "cannot detach " + device + " from guest " + guest_uuid,
      [=](LibvirtSession& session) { return session.detach(guest_uuid, device); }, std::move(done));
}

void LibvirtHypervisor::assign(std::string guest, Assignment assignment, bool remove, Done<bool> done) {
  // One key for all: read, change, write must not interleave, and a guest has two names.
  call<bool>(
      Lane::kChange, "assign", "cannot assign to guest " + escape_text(guest.substr(0, 255)),
      [=](LibvirtSession& session) { return session.assign(guest, assignment, remove); }, std::move(done));
}

// libvirt_uri=none
class NoHypervisor final : public Hypervisor {
 public:
  void start(HypervisorEvents /*events*/) override {}
  void find_guest(std::string /*name_or_uuid*/, Done<Guest> done) override { refuse(std::move(done)); }
  void list_guests(Done<std::vector<Guest>> done) override { refuse(std::move(done)); }
  void attach_endpoint(std::string /*guest_uuid*/, std::string /*device*/, std::string /*socket_path*/,
                       Done<void> done) override {
    refuse(std::move(done));
  }
  void attach_usb(std::string /*guest_uuid*/, std::string /*device*/, UsbAddress /*address*/,
                  Done<void> done) override {
    refuse(std::move(done));
  }
  void detach_usb(std::string /*guest_uuid*/, UsbAddress /*address*/, Done<void> done) override {
    refuse(std::move(done));
  }
  void destroy(std::string /*guest_uuid*/, Done<void> done) override { refuse(std::move(done)); }
  void detach(std::string /*guest_uuid*/, std::string /*device*/, Done<void> done) override { refuse(std::move(done)); }
  void assign(std::string /*guest*/, Assignment /*assignment*/, bool /*remove*/, Done<bool> done) override {
    refuse(std::move(done));
  }
  [[nodiscard]] bool is_connected() const override { return false; }
  [[nodiscard]] std::string describe() const override { return "none (libvirt_uri=none)"; }

 private:
  // What is already posted does not run once this is gone.
  template <typename T>
  void refuse(Done<T> done) {
    post([done = std::move(done), weak = std::weak_ptr<int>(alive_)] {
      if (weak.lock()) done(fail(ErrorCode::kUnavailable, "this host has no hypervisor: libvirt_uri=none"));
    });
  }
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace

std::unique_ptr<Hypervisor> make_libvirt_hypervisor(LibvirtOptions options) {
  if (options.uri == "none") return std::make_unique<NoHypervisor>();
  return std::make_unique<LibvirtHypervisor>(std::move(options));
}

}  // namespace usblease::host
